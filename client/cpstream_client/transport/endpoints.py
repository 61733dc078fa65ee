"""Which of a service's endpoints to ask: each process has its turn among them, and avoids for a while what failed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

_COOLDOWN_S = 5.0
_MAX_COOLDOWN_S = 300.0
"""An endpoint that failed is asked again after 5 s, 10 s, 20 s, ... as long as another one answers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service listens: scheme, host, port, and the path under which a proxy may have put it."""

    url: str
    secure: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> "Endpoint":
        """Raises ValueError for what is not an http or https URL."""
        like = "it must look like http://data:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"url is {url!r}: {error}; {like}") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"url names a user or password for {parts.hostname}; give auth=('user', 'password') instead, or token=..., "
                f"and a url like {like[18:]}"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            meant = "" if "://" in url or not url.strip("/") else f"; did you mean http://{url.strip()}?"
            raise ValueError(f"url is {url!r}; {like}{meant}")
        secure = parts.scheme == "https"
        return cls(url.rstrip("/"), secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


class Replicas:
    """The endpoints, and which of them failed lately. For all threads of a process; failures are not pickled.

    met: whether one of them has ever answered, in this process or the one that this was copied from.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...], clock: Callable[[], float] = time.monotonic, met: bool = False) -> None:
        self.endpoints, self.met = endpoints, met
        self._clock = clock
        self._failures: dict[Endpoint, tuple[int, float]] = {}  # how many in a row, and the time of the last

    def __reduce__(self) -> tuple[type["Replicas"], tuple[object, ...]]:
        return type(self), (self.endpoints, time.monotonic, self.met)

    def __len__(self) -> int:
        return len(self.endpoints)

    def choose(self, turn: int) -> Endpoint:
        """The endpoint whose turn it is, or the next one that did not fail lately; if all did, the one that rests the longest."""
        first = turn % len(self.endpoints)
        in_turn = self.endpoints[first:] + self.endpoints[:first]
        if not self._failures:
            return in_turn[0]
        now = self._clock()
        return min(in_turn, key=lambda endpoint: max(0.0, self._rests_until(endpoint) - now))

    def failed(self, endpoint: Endpoint, asked_s: float = math.inf) -> None:
        """asked_s: when, by time.monotonic; of several requests that one fault ends, one counts."""
        failures, last = self._failures.get(endpoint, (0, 0.0))
        if not failures or asked_s >= last:
            self._failures[endpoint] = failures + 1, self._clock()

    def worked(self, endpoint: Endpoint) -> None:
        self.met = True
        self._failures.pop(endpoint, None)

    def _rests_until(self, endpoint: Endpoint) -> float:
        failures, last = self._failures.get(endpoint, (0, 0.0))
        return last + min(_MAX_COOLDOWN_S, _COOLDOWN_S * 2.0 ** min(failures - 1, 60)) if failures else 0.0
