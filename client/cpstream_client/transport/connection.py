"""One keep-alive HTTP/1.1 connection, by http.client: straight to the service, or through a proxy."""

import http.client
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from .sockets import Line, Response, round_trip_s, set_timeout

if TYPE_CHECKING:
    import httpx

_MAX_IDLE_S = 3.0
"""A connection that was idle for longer is opened anew: servers close idle ones (uvicorn after 5 s by default)."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: until there is a connection, and without a byte received or sent."""

    connect_s: float
    receive_s: float
    send_s: float


class Route:
    """How connections are opened: trusting whom, and through which proxy. Its TLS context is made when it is first needed."""

    def __init__(self, make_context: Callable[[], ssl.SSLContext], proxy: "httpx.Proxy | None") -> None:
        self._make_context, self._proxy = make_context, proxy

    @cached_property
    def context(self) -> ssl.SSLContext:
        return self._make_context()

    def open(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        """A connection that is not connected yet."""
        proxy = self._proxy
        at = (host, port) if proxy is None else (proxy.url.host, proxy.url.port or 80)
        if scheme != "https":
            return http.client.HTTPConnection(*at)
        secure = http.client.HTTPSConnection(*at, context=self.context)
        if proxy is not None:
            secure.set_tunnel(host, port, dict(self._proxy_headers))
        return secure

    def is_proxied(self, scheme: str) -> bool:
        """Whether requests go to a proxy that must be told the whole URL; it wants proxy_headers, too."""
        return self._proxy is not None and scheme != "https"

    @cached_property
    def proxy_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in self._proxy_headers]

    @property
    def _proxy_headers(self) -> list[tuple[str, str]]:
        if self._proxy is None:
            return []
        headers = list(self._proxy.headers.items())
        if self._proxy.auth is not None:
            headers.append(("Proxy-Authorization", "Basic " + b64encode(":".join(self._proxy.auth).encode()).decode()))
        return headers


class Connection:
    """Opened by its first request and again by the next one after it broke. Not for several threads.

    met: called with the seconds of a round trip to the other end, whenever a connection has been made.
    """

    def __init__(self, route: Route, scheme: str, host: str, port: int, met: Callable[[float], None]) -> None:
        self._met = met
        self._http = route.open(scheme, host, port)  # opens the socket, and no more: its requests go out in two pieces
        self._response: Response | None = None
        self._used_s = 0.0
        self._timeouts: Timeouts | None = None

    @property
    def is_stale(self) -> bool:
        """Whether it has been idle for so long that the server may be closing it."""
        return time.monotonic() - self._used_s > _MAX_IDLE_S

    def connect(self, timeouts: Timeouts) -> None:
        """Open it before its first request. Raises as send does."""
        try:
            self._connect(timeouts)
        except BaseException:
            self.close()
            raise

    def send(self, request: bytes, timeouts: Timeouts, line: Line | None) -> None:
        """Send a request, head and body. Raises OSError or http.client.HTTPException, the connection closed."""
        try:
            sock = self._connect(timeouts)
            if line is not None:
                line.connect(sock)
            sock.sendall(request)
        except BaseException:
            self.close()
            raise

    def receive(self, method: str) -> Response:
        """The reply to what was sent, its body still to come. Raises as send does."""
        try:
            if self._http.sock is None:  # closed in between
                raise http.client.NotConnected
            response = self._response = Response(self._http.sock, method)
            response.begin()
            if response.headers.defects:  # http.client takes what follows a broken line for the body
                raise http.client.HTTPException("a header of the reply is damaged")
        except BaseException:
            self.close()
            raise
        return response

    def release(self) -> None:
        """Note the time at which a reply was read to its end, from which on the connection is idle."""
        self._used_s = time.monotonic()
        self._response = None

    def close(self) -> None:
        self._http.close()
        if self._response is not None:
            self._response.close()
        self._response = None

    def _connect(self, timeouts: Timeouts) -> socket.socket:
        if self._http.sock is None:
            self._http.timeout = timeouts.connect_s
            began = time.monotonic()
            self._http.connect()
            self._timeouts = None
            self._met(round_trip_s(cast(socket.socket, self._http.sock), time.monotonic() - began))
        sock = cast(socket.socket, self._http.sock)
        if self._timeouts != timeouts:
            set_timeout(sock, timeouts.receive_s, timeouts.send_s)
            self._timeouts = timeouts
        return sock
