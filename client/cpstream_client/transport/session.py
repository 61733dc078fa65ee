"""The httpx.Client of each process: made when it is first needed, and never used by another process."""

import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from ..errors import CpstreamError
from .options import GIVE_A_FUNCTION, HttpOptions, is_http_client
from .sockets import Line

if TYPE_CHECKING:
    import httpx

_MAX_PREPARED = 64
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
        self._is_ours = options.http is None  # else it may change under our hands
        self._prepared: dict[tuple[str, ...], httpx.Request] = {}
        self.transport: Any = None
        """Our own one, or None."""
        self.errors: tuple[type[Exception], ...] = ()
        """What `send` and the reading of a body raise where the network or the other side is at fault."""

    def send(
        self, method: str, url: str, headers: dict[str, str], request_id: tuple[str, str], body: bytes | None, line: Line
    ) -> "httpx.Response":
        """The reply, its body still to come. Raises one of self.errors, and whatever hooks and auth flows raise.

        request_id: the header that no two requests have in common.
        """
        client = self._client or self._open()
        request = self._request(client, method, url, headers, body)
        name, value = request_id
        request.headers[name] = value
        request.extensions = {**request.extensions, "cpstream.line": line}
        return client.send(request, stream=True)

    def close(self) -> None:
        if self._client is not None and not is_http_client(self._options.http):  # what the caller made is the caller's to close
            self._client.close()

    def abandon(self) -> None:
        """In a forked process: let go of what is the parent's."""
        if self.transport is not None:
            self.transport.close()  # a file descriptor that this process has, too; the parent's connection lives on
        _inherited.append(self._client)

    def _request(
        self, client: "httpx.Client", method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> "httpx.Request":
        """As client.build_request does, but where the client is ours and the URL has been asked before, in a fifth of the time.

        Random access asks the same URL again and again; merging and parsing it each time would cost 0.06 ms of CPU a request.
        """
        if not self._is_ours or client.cookies:
            return client.build_request(method, url, headers=headers, content=body)
        key = (method, url, *headers.values())
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _MAX_PREPARED:
                self._prepared.clear()
            prepared = self._prepared[key] = client.build_request(method, url, headers=headers)
            prepared.headers.pop("Content-Length", None)  # this one's, not the next one's
        return type(prepared)(method, prepared.url, headers=prepared.headers, content=body, extensions=prepared.extensions)

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
            transport: httpx.BaseTransport = SocketTransport(options.ssl_context, proxy)
            self.transport = transport
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
