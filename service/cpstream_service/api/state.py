"""What the routes of one app share."""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from fastapi import Depends, Request

from cpstream_client.contract.bodies import SplitInfo

from ..batches.server import BatchServer
from ..errors import DatasetChanged, UnknownSplit
from ..settings import ServeSettings
from ..snapshot.store import Snapshot, Split
from .arrivals import Arrivals
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
    arrivals: Arrivals = field(init=False)
    infos: dict[str, SplitInfo] = field(
        init=False
    )  # what is told of each split, with what a client must know to keep to the limits

    def __post_init__(self) -> None:
        limit, workers = self.settings.max_reply_bytes, self.settings.workers
        told = {"max_reply_bytes": limit, "workers": workers if workers > 1 else None}
        infos = {
            name: split.info.model_copy(update={"max_path_bytes": _longest(split), **told})
            for name, split in self.snapshot.splits.items()
        }
        object.__setattr__(self, "infos", infos)
        object.__setattr__(self, "arrivals", Arrivals(self.settings))

    def split(self, name: str, pinned: str | None = None) -> Split:
        """The split of this name. Raises UnknownSplit, and DatasetChanged when its fingerprint is not the one pinned."""
        split = self.snapshot.splits.get(name)
        if split is None:
            raise UnknownSplit(name, list(self.snapshot.splits))
        if pinned is not None and pinned != split.fingerprint:
            raise DatasetChanged(name, pinned, split.fingerprint)
        return split


def _longest(split: Split) -> int:
    """Bytes of the longest path of a split."""
    paths = split.file_paths
    ends = np.frombuffer(paths.buffers()[1], np.int32)[paths.offset : paths.offset + len(paths) + 1]
    return int(np.diff(ends).max(initial=0))


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(_service)]
