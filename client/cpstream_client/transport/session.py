"""The httpx.Client of each process: made when it is first needed, and never used by another process."""

import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from ..errors import CpstreamError
from .answers import Answer, Call, answer_of, answer_of_exchange
from .options import GIVE_A_FUNCTION, HttpOptions, is_http_client
from .sockets import Line

if TYPE_CHECKING:
    import httpx

    from .socket_transport import Head, SocketTransport

_MAX_BUILT = 64
_ANSWER_S = 0.02
"""What an answer may take without the way to it being long."""
_inherited: list[object] = []
"""Clients of parent processes. Nothing here may use or close them, so they are kept where no garbage collector finds them."""


class Sessions:
    """Sends requests by the client of the process that asks, forked ones included. Picklable; opens nothing by itself."""

    def __init__(self, options: HttpOptions) -> None:
        self.options = options
        self._made_in = os.getpid()
        self._by_process: dict[int, Session] = {}
        weakref.finalize(self, _close_own, self._by_process)

    def __reduce__(self) -> tuple[type["Sessions"], tuple[HttpOptions]]:
        return type(self), (self.options,)

    def here(self) -> "Session":
        """The session of this process. Raises CpstreamError where `http` is a client of another process."""
        pid = os.getpid()
        session = self._by_process.get(pid)
        if session is None:
            if pid != self._made_in and is_http_client(self.options.http):
                raise CpstreamError(f"http={self.options.http!r} was made in another process than this one; {GIVE_A_FUNCTION}")
            for parent in [each for each in list(self._by_process) if each != pid]:
                if (abandoned := self._by_process.pop(parent, None)) is not None:
                    abandoned.abandon()
            # setdefault, for another thread may have been faster; no lock, which a fork could copy while it is held.
            session = self._by_process.setdefault(pid, Session(self.options))
        return session

    def close(self) -> None:
        """Close the connections of this process; another request opens new ones."""
        _close_own(self._by_process)


def _close_own(by_process: "dict[int, Session]") -> None:
    session = by_process.pop(os.getpid(), None)
    if session is not None:
        session.close()


class Session:
    """The client of one process. Safe between threads."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._built: dict[tuple[object, ...], tuple[httpx.Request, Head, dict[str, str]]] = {}
        self.transport: SocketTransport | None = None
        """Our own one, or None."""
        self.errors: tuple[type[Exception], ...] = ()
        """What receiving and the reading of a body raise where the network or the other side is at fault."""
        self._answer_s: dict[tuple[str, str, int], float] = {}  # the fastest of each origin

    def round_trip_s(self, origin: tuple[str, str, int]) -> float | None:
        """How long a packet takes to a scheme, host and port and back; None before the first answer.

        Over our own transport that of the fastest handshake, over others no more than what the fastest answer cannot be without.
        """
        made = None if self.transport is None else self.transport.round_trips.get(origin)
        if made is not None:
            return made
        answer_s = self._answer_s.get(origin)
        return None if answer_s is None else max(0.0, answer_s - _ANSWER_S)

    def connect(self, origin: tuple[str, str, int]) -> float | None:
        """Open a connection of our own transport to a scheme, host and port, and say how long the way is; else None."""
        client, transport = self._client or self._open(), self.transport
        if transport is None or not self._is_direct(client):
            return None
        transport.connect(origin, self._options.connect_timeout_s, self._options.timeout_s)
        return self.round_trip_s(origin)

    def _is_direct(self, client: "httpx.Client") -> bool:
        """Whether httpx.Client.send has nothing to add to what is sent."""
        options = self._options
        return self.transport is not None and options.auth is None and not options.event_hooks and not client.cookies

    def send(self, method: str, url: str, headers: dict[str, str], own: dict[str, str], body: bytes | None, line: Line) -> Call:
        """Send a request: now where that is possible, else when its answer is waited for.

        own: headers whose values no two requests have in common, and no other header holds. Receiving raises one of self.errors,
        and whatever hooks and auth flows raise.
        """
        client, transport = self._client or self._open(), self.transport
        if transport is not None and self._is_direct(client):
            return self._send_directly(client, transport, method, url, headers, own, body, line)
        request = client.build_request(method, url, headers=headers | own, content=body)
        request.extensions = {**request.extensions, "cpstream.line": line}
        origin = request.url.scheme, request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)

        def receive() -> Answer:
            began = time.monotonic()
            response = client.send(request, stream=True)
            took = time.monotonic() - began
            self._answer_s[origin] = min(took, self._answer_s.get(origin, took))
            return answer_of(response)

        return Call(receive)

    def _send_directly(
        self,
        client: "httpx.Client",
        transport: "SocketTransport",
        method: str,
        url: str,
        headers: dict[str, str],
        own: dict[str, str],
        body: bytes | None,
        line: Line,
    ) -> Call:
        """Past httpx.Client.send, which without a login, hooks and cookies only hands the request to our transport.

        It would take 0.2 ms of CPU a request, a third of what random access needs in all, and would come back with the head of the
        reply only, so that to ask ahead would take a thread. What goes out is the same, to the byte: httpx builds the request, and
        one that differs from an earlier one in its own headers and the bytes of its body alone is made from that one's bytes.
        """
        key = (method, url, *headers.items(), *own, None if body is None else len(body))
        found = self._built.get(key)
        if found is None:
            if len(self._built) >= _MAX_BUILT:
                self._built.clear()
            request = client.build_request(method, url, headers=headers | own, content=body)
            found = self._built[key] = request, transport.head_of(request), own
        request, head, others = found
        for name, value in own.items():
            head = head.replaced(others[name], value)
        exchange = transport.send(head, body or b"", line)

        def receive() -> Answer:
            exchange.receive()
            if "Set-Cookie" in exchange.response.headers:  # of a balancer, say; from now on client.send returns it
                response = exchange.to_httpx()
                response.request = request
                client.cookies.extract_cookies(response)
            return answer_of_exchange(exchange)

        return Call(receive, exchange)

    def close(self) -> None:
        if self._client is not None and not is_http_client(self._options.http):  # what the caller made is the caller's to close
            self._client.close()

    def abandon(self) -> None:
        """In a forked process: let go of what is the parent's."""
        if self.transport is not None:
            self.transport.close()  # a file descriptor that this process has, too; the parent's connection lives on
        _inherited.append(self._client)

    def _open(self) -> "httpx.Client":
        with self._lock:
            if self._client is None:
                made = self._make()
                self.errors = (_library(made).RequestError,)
                self._client = made
            return self._client

    def _make(self) -> "httpx.Client":
        options = self._options
        if options.http is not None:
            made = options.http if is_http_client(options.http) else options.http()  # type: ignore[operator]
            if not is_http_client(made):
                raise TypeError(f"http={options.http!r} made a {type(made).__name__}; it must make an httpx.Client")
            return made  # type: ignore[return-value]
        import httpx

        from .socket_transport import SocketTransport

        proxy = options.proxy if options.proxy is None or isinstance(options.proxy, httpx.Proxy) else httpx.Proxy(options.proxy)
        if proxy is None or proxy.url.scheme == "http":
            transport: httpx.BaseTransport
            transport = self.transport = SocketTransport(options.ssl_context, proxy)
        else:  # TLS to the proxy and TLS within that, or SOCKS: slower, but httpx knows how
            transport = httpx.HTTPTransport(verify=options.ssl_context(), proxy=proxy, trust_env=False)
        seconds = options.timeout_s
        return httpx.Client(
            transport=transport,
            auth=options.auth,
            headers=options.headers,
            event_hooks=None if options.event_hooks is None else {name: list(hooks) for name, hooks in options.event_hooks.items()},
            timeout=httpx.Timeout(seconds, connect=options.connect_timeout_s),
            trust_env=False,  # a HTTP_PROXY that is meant for the internet must not catch what goes to the next rack
        )


def _library(client: object) -> Any:
    """The module whose errors a client raises: httpx, or its successor."""
    for kind in type(client).__mro__:
        module = sys.modules.get(kind.__module__.partition(".")[0])
        if kind.__name__ == "Client" and hasattr(module, "RequestError"):
            return module
    import httpx

    return httpx
