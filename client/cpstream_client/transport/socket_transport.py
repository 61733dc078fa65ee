"""An httpx transport over plain sockets, for httpcore reads a body in pieces of 64 KiB, at up to twice the CPU time a byte.

A reply's body can be read into memory that the reader brings: `response.extensions[BODY]` is the Exchange. Whoever waits for it can
be woken through `request.extensions[LINE]`, a Line. A request may also be sent now and its reply be received later, without httpx.
"""

import http.client
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from .connection import Connection, Route, Timeouts
from .sockets import Line, Response

BODY = "cpstream.body"
LINE = "cpstream.line"
_PIECE_BYTES = 64 * 1024
_NEVER_S = float(2**31)
_MAX_IDLE = 8
"""Connections kept open to one origin; of more threads at once, each opens its own."""

_Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body: data, the bytes as they are sent; origin: scheme, host and port to which."""

    origin: _Origin
    method: str
    data: bytes
    timeouts: Timeouts

    def replaced(self, old: str, new: str) -> "Head":
        """With another value in the place of one that no other header holds."""
        return Head(self.origin, self.method, self.data.replace(old.encode(), new.encode()), self.timeouts)


class SocketTransport(httpx.BaseTransport):
    """For many threads, but one process. Connections stay open between requests.

    proxy: of scheme http, or none.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext], proxy: httpx.Proxy | None) -> None:
        self._route = Route(make_context, proxy)
        self.idle: dict[_Origin, deque[Connection]] = defaultdict(deque)
        self.round_trips: dict[_Origin, float] = {}
        """Seconds of the fastest round trip to each origin. Nothing is known of what is behind a proxy."""
        self._is_proxied = proxy is not None
        self._closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = b"".join(request.stream)  # type: ignore[arg-type] # a sync client's streams are sync
        exchange = self.send(self.head_of(request), body, request.extensions.get(LINE))
        exchange.receive()
        return exchange.to_httpx()

    def head_of(self, request: httpx.Request) -> Head:
        """Raises ValueError for a header that would not end where its line does."""
        url = request.url
        origin = url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
        target, headers = url.raw_path, request.headers.raw
        if self._route.is_proxied(url.scheme):
            target = f"{url.scheme}://".encode() + url.netloc + target
            headers = headers + self._route.proxy_headers
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), target)]
        lines += [b"%s: %s" % header for header in headers]
        data = b"\r\n".join(lines)
        if data.splitlines() != lines:
            raise ValueError("a header has a line break, which HTTP cannot send")
        wait = request.extensions.get("timeout", {})
        timeouts = Timeouts(*(wait.get(name) or _NEVER_S for name in ("connect", "read", "write")))
        return Head(origin, request.method, data + b"\r\n\r\n", timeouts)

    def connect(self, origin: _Origin, connect_s: float | None, wait_s: float | None) -> None:
        """Open a connection that the next request finds idle. Raises OSError, http.client.HTTPException or ValueError."""
        connection = self._new(origin)
        connection.connect(Timeouts(*(seconds or _NEVER_S for seconds in (connect_s, wait_s, wait_s))))
        self._give_back(connection, origin)

    def send(self, head: Head, body: bytes, line: Line | None) -> "Exchange":
        """Send a request. Never raises what the network is at fault for: that comes with the reply."""
        exchange = Exchange(self._connection(head.origin), head, line, self._give_back)
        exchange.send(body)
        return exchange

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._closed = True
        for connections in self.idle.values():
            while connections:
                connections.pop().close()

    def _connection(self, origin: _Origin) -> Connection:
        idle = self.idle[origin]
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if not connection.is_stale:
                return connection
            connection.close()
        return self._new(origin)

    def _new(self, origin: _Origin) -> Connection:
        return Connection(self._route, *origin, partial(self._note, origin))

    def _note(self, origin: _Origin, round_trip_s: float) -> None:
        if not self._is_proxied:
            self.round_trips[origin] = min(round_trip_s, self.round_trips.get(origin, round_trip_s))

    def _give_back(self, connection: Connection, origin: _Origin) -> None:
        connection.release()
        idle = self.idle[origin]
        if len(idle) < _MAX_IDLE and not self._closed:
            idle.append(connection)
        else:
            connection.close()


class Exchange(httpx.SyncByteStream):
    """A request and its reply, whose body comes as pieces or into given memory. What reads raises httpx.TransportError.

    Closed when the body has been read to its end it gives its connection back; closed before that, it closes the connection.
    """

    response: Response
    """As soon as it has been received."""

    def __init__(
        self, connection: Connection, head: Head, line: Line | None, give_back: Callable[[Connection, _Origin], None]
    ) -> None:
        self._connection, self._head, self._line, self._give_back = connection, head, line, give_back
        self._failed: httpx.TransportError | None = None
        self._done = False

    def send(self, body: bytes) -> None:
        head = self._head
        try:
            self._try(self._connection.send, head.data + body, head.timeouts, self._line)
        except httpx.TransportError as error:
            self._failed = error

    def receive(self) -> None:
        """Wait for the head of the reply."""
        if self._failed is not None:
            raise self._failed
        self.response = self._try(self._connection.receive, self._head.method)

    def to_httpx(self) -> httpx.Response:
        response = self.response
        return httpx.Response(
            response.status,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()],
            stream=self,
            extensions={BODY: self, "http_version": b"HTTP/1.1", "reason_phrase": response.reason.encode("latin-1", "replace")},
        )

    @property
    def length(self) -> int | None:
        """Bytes of the body to come, None where nobody said."""
        return self.response.length

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, or as much of it as there is."""
        got: int = self._try(self.response.readinto, buffer)
        return got

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._try(self.response.read, _PIECE_BYTES):
            yield piece
        self.close()

    def close(self) -> None:
        if self._done:
            return
        if not self.response.isclosed() or self.response.will_close:
            self.discard()
            return
        self._done = True
        if self._line is None or self._line.disconnect():
            self._give_back(self._connection, self._head.origin)
        else:
            self._connection.close()

    def discard(self) -> None:
        """Close the connection, if it is still ours: what a damaged reply has left in it is no answer to the next request."""
        if not self._done:
            self._done = True
            self._connection.close()

    def _try(self, step: Callable[..., Any], *arguments: object) -> Any:
        try:
            return step(*arguments)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed under a reader, or a host's odd name
            self.discard()
            raise _as_httpx(error) from error


def _as_httpx(error: Exception) -> httpx.TransportError:
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError | BlockingIOError):
        return httpx.ReadTimeout("timed out" if isinstance(error, BlockingIOError) else text)
    if isinstance(error, http.client.HTTPException):
        return httpx.RemoteProtocolError(text)
    if text.startswith("Tunnel connection failed: "):  # http.client has no type for it
        return httpx.ProxyError(text.removeprefix("Tunnel connection failed: "))
    if isinstance(error, ssl.SSLError | socket.gaierror | UnicodeError | ConnectionRefusedError):
        return httpx.ConnectError(text)
    return httpx.ReadError(text)
