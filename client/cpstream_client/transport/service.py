"""How to reach a service: its endpoints, and how patient to be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .connection import Connection
from .endpoints import Endpoint, Replicas
from .retry import Retry

REQUEST_BYTES = 64 * 1024**2
"""Of one request: bounds what a fault, a drain or a stall can cost, and costs nothing measurable itself."""


@dataclass(frozen=True, slots=True)
class Service:
    """How to reach a service: its replicas, and how patient to be. Picklable; opens nothing."""

    replicas: Replicas
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    retry: Retry = field(default_factory=Retry)
    request_bytes: int = REQUEST_BYTES

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be more than 0 seconds")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("the token has a line break or another character that no HTTP header can carry")

    @classmethod
    def at(
        cls, url: str | Sequence[str], token: str | None = None, timeout_s: float = 30.0, retry: Retry | None = None
    ) -> "Service":
        """Raises ValueError for a malformed url or a value out of range."""
        urls = [url] if isinstance(url, str) else list(dict.fromkeys(url))
        if not urls:
            raise ValueError("url is an empty list; it must name at least one endpoint, like http://data:8000")
        return cls(Replicas(tuple(Endpoint.parse(each) for each in urls)), token, timeout_s, retry or Retry())

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.replicas.endpoints

    def connection(self, endpoint: Endpoint) -> Connection:
        """A connection that is not open yet."""
        return Connection(endpoint, self.token, self.timeout_s)
