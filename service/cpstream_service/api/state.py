"""What the routes of one app share."""

from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from ..batches.server import BatchServer
from ..settings import ServeSettings
from ..snapshot.difference import Differences
from ..snapshot.store import Split
from ..statistics.jobs import Jobs
from ..statistics.neighbours import Searches
from ..statistics.predictions.store import Runs
from ..statistics.selection import Selections
from ..versions.state import State
from .arrivals import Arrivals
from .drain import Drain
from .follow import Follower
from .live import Live
from .metrics import Metrics
from .versions import Versions


@dataclass(frozen=True)
class Service:
    """One app's state, made when it starts and gone when it stops. follower: None over one snapshot that stays."""

    versions: Versions
    settings: ServeSettings
    batch_server: BatchServer
    metrics: Metrics
    drain: Drain
    jobs: Jobs
    follower: Follower | None = None
    searches: Searches = field(default_factory=Searches)
    selections: Selections = field(default_factory=Selections)
    selecting: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))  # those who wait for it take no thread
    differences: Differences = field(default_factory=Differences)
    live: Live = field(init=False)
    arrivals: Arrivals = field(init=False)
    runs: Runs | None = field(init=False)
    reading: CapacityLimiter = field(init=False)
    """Tables that are read at once, each by a process of its own."""

    def __post_init__(self) -> None:
        settings = self.settings
        object.__setattr__(self, "live", Live(self.metrics, settings.workers))
        object.__setattr__(self, "arrivals", Arrivals(settings))
        runs = None if settings.state_dir is None else Runs(settings.state_dir, settings.max_predictions_bytes)
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "reading", CapacityLimiter(1))

    @property
    def state(self) -> State:
        """What the keeper of the versions last told."""
        return State() if self.follower is None else self.follower.state

    @property
    def is_stale(self) -> bool:
        """Whether what is served may be older than its source: that could not be read, at the start or by the last reload."""
        last = self.state.last
        return self.versions.stale_reason is not None or (last is not None and last.error is not None)

    def split(self, name: str, pinned: str | None = None) -> Split:
        """The split that a request is answered from. Raises as Versions.split."""
        return self.versions.split(name, pinned)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(_service)]
