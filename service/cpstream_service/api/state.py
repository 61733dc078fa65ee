"""What the routes of one app share."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..batches.server import BatchServer
from ..errors import DatasetChanged, UnknownSplit
from ..settings import ServeSettings
from ..snapshot.store import Snapshot, Split
from .drain import Drain
from .files import Downloads
from .observability import Metrics


@dataclass(frozen=True)
class Service:
    """One app's state, made when it starts and gone when it stops. stale_reason: why the data may be older than its source."""

    snapshot: Snapshot
    settings: ServeSettings
    batch_server: BatchServer
    downloads: Downloads
    metrics: Metrics
    drain: Drain
    stale_reason: str | None

    def split(self, name: str, pinned: str | None = None) -> Split:
        """The split of this name. Raises UnknownSplit, and DatasetChanged when its fingerprint is not the one pinned."""
        split = self.snapshot.splits.get(name)
        if split is None:
            raise UnknownSplit(name, list(self.snapshot.splits))
        if pinned is not None and pinned != split.fingerprint:
            raise DatasetChanged(name, pinned, split.fingerprint)
        return split


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(_service)]
