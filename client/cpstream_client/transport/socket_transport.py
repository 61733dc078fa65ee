"""An httpx transport over plain sockets, for httpcore reads a body in pieces of 64 KiB, at up to twice the CPU time a byte.

A reply's body can be read into memory that the reader brings: `response.extensions[BODY]` is the Body. Whoever waits for it can be
woken through `request.extensions[LINE]`, a Line.
"""

import http.client
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from .connection import Connection, Route, Timeouts
from .sockets import Line, Response

BODY = "cpstream.body"
LINE = "cpstream.line"
_PIECE_BYTES = 64 * 1024
_MAX_IDLE = 8
"""Connections kept open to one origin; of more threads at once, each opens its own."""

_Origin = tuple[str, str, int]


class SocketTransport(httpx.BaseTransport):
    """For many threads, but one process. Connections stay open between requests.

    proxy: of scheme http, or none.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext], proxy: httpx.Proxy | None) -> None:
        self._route = Route(make_context, proxy)
        self.idle: dict[_Origin, deque[Connection]] = defaultdict(deque)
        self._closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        origin = url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
        target, headers = url.raw_path.decode("ascii"), request.headers.raw
        if self._route.is_proxied(url.scheme):
            target = f"{url.scheme}://{url.netloc.decode('ascii')}{target}"
            headers = headers + self._route.proxy_headers
        wait = request.extensions.get("timeout", {})
        timeouts = Timeouts(*(wait.get(name) or float(2**31) for name in ("connect", "read", "write")))
        connection = self._connection(origin)
        body = b"".join(request.stream)  # type: ignore[arg-type] # a sync client's streams are sync
        try:
            response = connection.send(request.method, target, headers, body, timeouts, request.extensions.get(LINE))
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise _as_httpx(error, request) from error
        stream = Body(connection, response, request, self._give_back(origin, request.extensions.get(LINE)))
        return httpx.Response(
            response.status,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()],
            stream=stream,
            extensions={BODY: stream, "http_version": b"HTTP/1.1", "reason_phrase": response.reason.encode("latin-1", "replace")},
        )

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
        return Connection(self._route, *origin)

    def _give_back(self, origin: _Origin, line: Line | None) -> Callable[[Connection], None]:
        def give_back(connection: Connection) -> None:
            if line is not None:
                line.disconnect()
            connection.release()
            idle = self.idle[origin]
            if len(idle) < _MAX_IDLE and not self._closed:
                idle.append(connection)
            else:
                connection.close()

        return give_back


class Body(httpx.SyncByteStream):
    """The body of a reply, as pieces or into given memory. length: bytes to come, None where nobody said.

    Closed when it has been read to its end it gives its connection back; closed before that, it closes the connection.
    """

    def __init__(
        self, connection: Connection, response: Response, request: httpx.Request, give_back: Callable[[Connection], None]
    ) -> None:
        self._connection, self._response, self._request, self._give_back = connection, response, request, give_back
        self._done = False

    @property
    def length(self) -> int | None:
        return self._response.length

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, or as much of it as there is. Raises httpx.ReadError or ReadTimeout."""
        got: int = self._read(self._response.readinto, buffer)
        return got

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._read(self._response.read, _PIECE_BYTES):
            yield piece
        self.close()

    def close(self) -> None:
        if self._done:
            return
        self._done = True
        if self._response.isclosed() and not self._response.will_close:
            self._give_back(self._connection)
        else:
            self._connection.close()

    def discard(self) -> None:
        """Close the connection in any case: what a damaged reply has left in it is no answer to the next request."""
        self._done = True
        self._connection.close()

    def _read(self, read: Callable[[Any], Any], argument: object) -> Any:
        try:
            return read(argument)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed under a reader
            self.discard()
            raise _as_httpx(error, self._request) from error


def _as_httpx(error: Exception, request: httpx.Request) -> httpx.TransportError:
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError | BlockingIOError):
        return httpx.ReadTimeout("timed out" if isinstance(error, BlockingIOError) else text, request=request)
    if isinstance(error, http.client.HTTPException):
        return httpx.RemoteProtocolError(text, request=request)
    if text.startswith("Tunnel connection failed: "):  # http.client has no type for it
        return httpx.ProxyError(text.removeprefix("Tunnel connection failed: "), request=request)
    if isinstance(error, ssl.SSLError | socket.gaierror | UnicodeError | ConnectionRefusedError):
        return httpx.ConnectError(text, request=request)
    return httpx.ReadError(text, request=request)
