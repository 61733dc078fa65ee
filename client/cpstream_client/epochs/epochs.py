"""Where the batches of an epoch come from: the service, or a cache that the service has filled. The order is the plan's in both."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..buffers import BufferPool, Bytes, allocate_aligned
from ..client import Client, progress_bar
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..contract.wire import COLUMNS, BatchQuery
from ..errors import TransportError, UnavailableError
from ..stream.backlog import Backlog
from ..stream.chosen import ChosenCourse
from ..stream.course import Asking, Course, trim
from ..stream.fetch import EpochFetcher
from ..stream.messages import Memory
from ..stream.reader import Batch
from .cache import SplitCache
from .chosen import Chosen
from .prefetch import prefetch

IDLE_BUFFERS = 64
_FILL_BYTES = 16 * 1024**2

CacheOf = Callable[[SplitInfo], SplitCache]


class Epochs:
    """Iterates over queries of one split. Not picklable; one a process. max_connections: fewer than the client's, or None."""

    def __init__(
        self,
        client: Client,
        info: SplitInfo,
        prefetch_bytes: int,
        cache: SplitCache | None = None,
        allocate: Callable[[int], Bytes] = allocate_aligned,
        max_connections: int | None = None,
    ) -> None:
        self._client, self._info, self._prefetch_bytes, self._cache = client, info, prefetch_bytes, cache
        self._memory = Memory(BufferPool(IDLE_BUFFERS, allocate))
        self._max_connections = max_connections
        self._file_paths: list[str] = []
        self._labels: dict[str, Any] = {}

    def records(self, query: BatchQuery, turn: int = 0) -> Generator[Batch, None, None]:
        """The samples of a query, in order, a few of its training batches in one. Closing it ends its thread and connections.

        turn: which of several endpoints to prefer.
        """
        if self._cache is None:
            yield from self._streamed(query, turn)
            return
        missing = self._cache.missing()
        if 2 * len(missing) > self._info.num_samples:  # the first epoch, or as good as
            yield from self._streamed(query, turn, self._cache)
            return
        self._fill(self._cache, missing)
        self._check_fingerprint()
        yield from self._gathered(self._cache, query)

    def chosen(self, query: BatchQuery, turn: int = 0) -> Chosen:
        """For batches of any indices. query: its dtype and columns count."""
        cache = self._cache
        columns = ("index",) if cache is None else ("embedding", "cps", "index")
        course, backlog = (
            ChosenCourse(replace(query, columns=(*query.columns, *columns)), self._info),
            Backlog(self._prefetch_bytes),
        )

        def fetch(course: ChosenCourse) -> Generator[Batch, None, None]:
            return self._ahead(course, turn, backlog, cache)

        def gather(indices: Indices) -> Batch:
            assert cache is not None  # noqa: S101 - which holds these
            return self._gathered_at(cache, indices, query)

        return Chosen(course, fetch, cache, gather, self._check_fingerprint)

    def _streamed(self, query: BatchQuery, turn: int, cache: SplitCache | None = None) -> Generator[Batch, None, None]:
        wanted = query if cache is None else replace(query, columns=(*query.columns, "embedding", "cps", "index"))
        course = Course(wanted, self._info)
        ahead = self._ahead(course, turn, Backlog(self._prefetch_bytes), cache)
        try:
            yield from trim(ahead, course)
        finally:
            ahead.close()

    def _ahead(self, course: Asking, turn: int, backlog: Backlog, cache: SplitCache | None) -> Generator[Batch, None, None]:
        """The record batches of a course, fetched ahead of the loop."""
        fetcher = EpochFetcher(self._client.service, course, self._memory, turn, backlog, self._max_connections)
        # Kept in the fetching thread, while the loop computes.
        items: Iterable[Batch] = fetcher if cache is None else _kept(fetcher, cache)
        return prefetch(items, backlog, fetcher.abort)

    def _gathered(self, cache: SplitCache, query: BatchQuery) -> Iterator[Batch]:
        plan = query.plan(self._info.num_samples)
        order = plan.order()
        for step in query.steps(plan.n):
            yield self._gathered_at(cache, plan.batch(order, step), query)

    def _gathered_at(self, cache: SplitCache, indices: Indices, query: BatchQuery) -> Batch:
        batch = cache.gather(indices.copy())  # the loop may keep or change its index column
        if "file_path" in query.columns:
            batch = replace(batch, file_paths=self._paths(batch.index))
        names = [name for name in query.columns if name not in COLUMNS]
        return replace(batch, labels=self._labels_of(names, batch)) if names else batch

    def _fill(self, cache: SplitCache, missing: Indices) -> None:
        """Fetch what an epoch that was left, or the other ranks' shares of it, did not bring."""
        per_request = max(1, _FILL_BYTES // (self._info.embedding_dim * 4))
        with progress_bar(f"caching {self._info.split}", len(missing)) as bar:
            for low in range(0, len(missing), per_request):
                indices = missing[low : low + per_request]
                cache.put(self._client.take(self._info.split, indices, dtype=cache.dtype, info=self._info))
                bar.update(len(indices))

    def _check_fingerprint(self) -> None:
        """Raises DatasetChanged when the service holds other data now. One that is away cannot: the cache goes on."""
        try:
            self._client.check_unchanged(self._info)
        except (TransportError, UnavailableError):
            return

    def _labels_of(self, names: Sequence[str], batch: Batch) -> dict[str, Any]:
        """Further labels of a cached batch, on the device where its others are. Small enough to keep for the whole split."""
        missing = tuple(name for name in names if name not in self._labels)
        if missing:
            parts = list(self._client.whole(missing, self._info))
            self._labels |= {name: np.concatenate([part.labels[name] for part in parts]) for name in missing}
        found = {name: self._labels[name][np.asarray(batch.index)] for name in names}
        cps: Any = batch.cps
        return found if isinstance(cps, np.ndarray) else {name: cps.new_tensor(found[name]) for name in names}

    def _paths(self, index: Indices | None) -> list[str]:
        if not self._file_paths:
            self._file_paths = self._client.file_paths(self._info.split, info=self._info)
        return [self._file_paths[i] for i in np.asarray(index)]


def _kept(batches: Iterable[Batch], cache: SplitCache) -> Iterator[Batch]:
    for batch in batches:
        cache.put(batch)
        yield batch
        del batch
