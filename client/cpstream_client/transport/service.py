"""How to reach a service: its endpoints, how HTTP is spoken to it, and how patient to be."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from ..contract.wire import REQUEST_ID_HEADER
from .asked import Asked
from .endpoints import Endpoint, Replicas
from .options import HttpOptions
from .pace import MAX_CONNECTIONS, REQUEST_BYTES, Pace
from .replies import Reply
from .retry import Retry
from .session import Sessions
from .sockets import Line
from .tracing import TRACEPARENT, trace_headers


def new_request_id() -> str:
    """By which the service's log names a request, and by which a reply is known as the service's own."""
    return os.urandom(8).hex()


@dataclass(frozen=True, slots=True)
class Service:
    """How to reach a service: its replicas, its HTTP sessions, and how patient to be. Picklable; opens nothing by itself."""

    replicas: Replicas
    sessions: Sessions
    retry: Retry = field(default_factory=Retry)
    request_bytes: int = REQUEST_BYTES
    pace: Pace = field(default_factory=Pace)

    @classmethod
    def at(
        cls,
        url: str | Sequence[str],
        options: HttpOptions | None = None,
        retry: Retry | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> "Service":
        """Raises ValueError for a malformed url, and for max_connections below 1."""
        urls = [url] if isinstance(url, str) else list(dict.fromkeys(url))
        if not urls:
            raise ValueError("url is an empty list; it must name at least one endpoint, like http://data:8000")
        replicas, pace = Replicas(tuple(Endpoint.parse(each) for each in urls)), Pace(max_connections)
        return cls(replicas, Sessions(options or HttpOptions()), retry or Retry(), pace=pace)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.replicas.endpoints

    @property
    def options(self) -> HttpOptions:
        return self.sessions.options

    def round_trip_s(self, endpoint: Endpoint) -> float | None:
        """How long a packet takes there and back, as far as this process has learnt it."""
        return self.sessions.here().round_trip_s(("https" if endpoint.secure else "http", endpoint.host, endpoint.port))

    def connect(self, endpoint: Endpoint) -> float | None:
        """Open a connection, for the next request to find; the round trip to the endpoint. None, and none, over another transport.

        Raises what connecting raises.
        """
        return self.sessions.here().connect(("https" if endpoint.secure else "http", endpoint.host, endpoint.port))

    def ask(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        params: Mapping[str, str],
        accept: str,
        body: bytes | None = None,
        content_type: str = "",
    ) -> Reply:
        """Send a request, and get the reply: status 200 and the media type asked for.

        Raises ServiceError when the service answered with a problem, TransportError when no proper answer came.
        """
        return self.send(endpoint, method, path, params, accept, body, content_type).reply()

    def send(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        params: Mapping[str, str],
        accept: str,
        body: bytes | None = None,
        content_type: str = "",
        line: Line | None = None,
    ) -> Asked:
        """The same in two steps: whatever goes wrong is raised with the reply. line: to wake by it who waits for the reply."""
        target = endpoint.prefix + path + (f"?{urlencode(params)}" if params else "")
        url = endpoint.url.removesuffix(endpoint.prefix) + target
        options = self.options
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        if content_type:
            headers["Content-Type"] = content_type
        if token := options.bearer():
            headers["Authorization"] = f"Bearer {token}"
        request_id = new_request_id()
        headers |= trace_headers()
        own = {REQUEST_ID_HEADER: request_id}
        if (parent := headers.pop(TRACEPARENT, None)) is not None:  # a loop may have a span of its own for each step
            own[TRACEPARENT] = parent
        session = self.sessions.here()
        call = session.send(method, url, headers, own, body, line or Line())
        return Asked(call, session.errors, endpoint.url, url, target, request_id, accept)
