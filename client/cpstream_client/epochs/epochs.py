"""Where the batches of an epoch come from: the service, or a cache that the service has filled. The order is the plan's in both."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..buffers import BufferPool, Bytes, allocate_aligned
from ..client import Client
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices, Plan
from ..contract.wire import COLUMNS, BatchQuery
from ..stream.backlog import Backlog
from ..stream.chosen import ChosenCourse
from ..stream.course import Asking, Course, trim
from ..stream.early import Early
from ..stream.fetch import EpochFetcher
from ..stream.lanes import Flow
from ..stream.messages import Memory
from ..stream.reader import Batch
from ..transport.pace import processors
from .ahead import MOST, gathered_ahead
from .budget import local_world_size
from .cache import IDLE_BUFFERS, MemoryCache, SplitCache
from .chosen import Chosen
from .filler import Filler
from .prefetch import prefetch
from .rest import Rest, others_than
from .tally import Tally, clock

_WINDOW_BYTES = 4 * 1024**2
"""Of what is gathered at once: several training batches, since each gather costs some microseconds, but no more than a processor's
cache holds until the loop looks at it."""
_STREAMED_FROM = 0.9
"""An epoch is streamed as long as the cache misses more than this share of the split."""


class Epochs:
    """Iterates over queries of one split. Not picklable; one a process.

    max_connections: fewer than the client's, or None. order: of a plan, as Plan.order, where there is a faster way to the same.
    """

    def __init__(
        self,
        client: Client,
        info: SplitInfo,
        prefetch_bytes: int,
        cache: SplitCache | None = None,
        allocate: Callable[[int], Bytes] = allocate_aligned,
        max_connections: int | None = None,
        order: Callable[[Plan], Indices] = Plan.order,
        tally: Tally | None = None,
    ) -> None:
        self._client, self._info, self._prefetch_bytes, self._cache = client, info, prefetch_bytes, cache
        self._memory = Memory(BufferPool(IDLE_BUFFERS, allocate))
        self._max_connections, self._order, self._tally = max_connections, order, tally or Tally()
        self._read = [0.0, 0.0]  # by the tally, of the memory's times
        self._file_paths: list[str] = []
        self._labels: dict[str, Any] = {}

    def records(self, query: BatchQuery, turn: int = 0, early: Early | None = None) -> Generator[Batch, None, None]:
        """The samples of a query, in order, a few of its training batches in one. Closing it ends its thread and connections.

        turn: which of several endpoints to prefer. early: the first request, if it has been sent already.
        """
        cache = self._cache
        missing = self._info.num_samples if cache is None else len(cache.missing())
        if cache is None or missing > _STREAMED_FROM * self._info.num_samples:  # the first epoch, or as good as
            yield from self._streamed(query, turn, cache, early)
            return
        if early is not None:
            early.close()
        self._client.check_while_there(self._info)
        windows = self._windows(query)
        if missing:
            for window in self._completed(cache, windows, query, turn):
                yield self._delivered(*self._gathered(cache, window, query), query)
        else:
            yield from self._all_gathered(cache, windows, query)

    def chosen(self, query: BatchQuery, turn: int = 0) -> Chosen:
        """For batches of any indices. query: its dtype and columns count."""
        cache = self._cache
        columns = ("index",) if cache is None else ("embedding", "cps", "index")
        course = ChosenCourse(replace(query, columns=(*query.columns, *columns)), self._info)

        def fetch(course: ChosenCourse) -> Generator[Batch, None, None]:
            return self._ahead(course, turn, Backlog(self._prefetch_bytes), cache)

        def gather(indices: Indices, fetched: int) -> Batch:
            assert cache is not None  # noqa: S101 - which holds these
            self._tally.missed(0, kept=fetched)
            return self._delivered(*self._gathered(cache, indices, query), query)

        return Chosen(course, fetch, cache, gather, partial(self._client.check_while_there, self._info))

    def _streamed(
        self, query: BatchQuery, turn: int, cache: SplitCache | None, early: Early | None
    ) -> Generator[Batch, None, None]:
        wanted = query if cache is None else replace(query, columns=(*query.columns, "embedding", "cps", "index"))
        course, backlog = Course(wanted, self._info), Backlog(self._prefetch_bytes)
        ahead = self._ahead(course, turn, backlog, cache, early)
        filler = self._filler(cache, query, backlog) if isinstance(cache, MemoryCache) else None
        try:
            yield from trim(ahead, course)
        finally:
            ahead.close()
            if filler is not None:
                filler.close()

    def _filler(self, cache: MemoryCache, query: BatchQuery, backlog: Backlog) -> Filler | None:
        """Where this iteration does not bring all of the split. (Of a directory's, the other ranks bring the rest.)"""
        if query.num_rows(self._info.num_samples) >= self._info.num_samples:
            return None
        memory, rank = Memory(BufferPool(2)), (query.rank, query.world_size)
        windows = self._windows(query)
        return Filler(self._client.service, self._info, cache, windows, backlog, memory, self._tally, rank)

    def _ahead(
        self, course: Asking, turn: int, backlog: Backlog, cache: SplitCache | None, early: Early | None = None
    ) -> Generator[Batch, None, None]:
        """The record batches of a course, fetched ahead of the loop."""
        workers = self._info.workers or 1
        fetcher = EpochFetcher(self._client.service, course, self._memory, turn, backlog, self._max_connections, workers, early)
        ahead = prefetch(self._kept(fetcher, cache), backlog, fetcher.abort, self._tally.met)
        try:
            for batch in ahead:
                self._tally.missed(batch.num_rows)
                yield batch
                del batch
        finally:
            ahead.close()

    def _kept(self, fetcher: EpochFetcher, cache: SplitCache | None) -> Iterator[Batch]:
        """For the fetching thread, while the loop computes."""
        seen = Flow()
        try:
            for batch in fetcher:
                if cache is not None:
                    then = clock()
                    cache.put(batch)
                    self._tally.put(clock() - then)
                self._tally.flowed(fetcher.flow, seen, self._memory, self._read)
                yield batch
                del batch
        finally:
            self._tally.flowed(fetcher.flow, seen, self._memory, self._read)

    def _windows(self, query: BatchQuery) -> list[Indices]:
        """The indices of the query's batches, in order, some whole batches in one; one that is empty stands alone."""
        n, batch_size = self._info.num_samples, query.batch_size
        plan = query.plan(n)
        order, steps, length = self._order(plan), query.steps(n), plan.num_samples
        rows = _WINDOW_BYTES // max(1, self._info.embedding_dim * np.dtype(query.dtype).itemsize)
        each = max(1, rows // batch_size) if query.num_workers == 1 else 1
        with_rows = -(-query.num_rows(n) // batch_size)
        full, empty = steps[:with_rows], steps[with_rows:]
        groups = [full[low : low + each] for low in range(0, len(full), each)] + [empty[low : low + 1] for low in range(len(empty))]
        bounds = [(min(group[0] * batch_size, length), min((group[-1] + 1) * batch_size, length)) for group in groups]
        return [plan.slice_of(order, low, high) for low, high in bounds]

    def _completed(self, cache: SplitCache, windows: list[Indices], query: BatchQuery, turn: int) -> Generator[Indices, None, None]:
        """The windows, each once the cache holds it. What it misses is fetched ahead of the loop, and some of the rest with it."""
        others = others_than(windows, cache, query.rank, query.world_size)
        rest = Rest(self._info, cache, windows, others)
        backlog = Backlog(self._prefetch_bytes)
        workers = self._info.workers or 1
        fetcher = EpochFetcher(self._client.service, rest, self._memory, turn, backlog, self._max_connections, workers)
        ahead = prefetch(self._kept_windows(rest, fetcher, cache), backlog, fetcher.abort, self._tally.met)
        filler = self._filler(cache, query, backlog) if isinstance(cache, MemoryCache) else None
        try:
            for window in ahead:
                self._tally.missed(window.fetched, kept=window.fetched)
                yield window.indices
        finally:
            ahead.close()
            if filler is not None:
                filler.close()

    def _kept_windows(self, rest: Rest, fetcher: EpochFetcher, cache: SplitCache) -> Iterator["_Window"]:
        row_bytes = self._info.embedding_dim * np.dtype(cache.dtype).itemsize
        took = at = 0
        batches = self._kept(fetcher, cache)
        while True:
            ready = rest.ready(took)
            for number in range(at, ready):
                yield _Window(rest.windows[number], len(rest.windows[number]) * row_bytes, rest.needed(number))
            at = ready
            if next(batches, None) is None:
                return
            took += 1

    def _all_gathered(self, cache: SplitCache, windows: list[Indices], query: BatchQuery) -> Generator[Batch, None, None]:
        """Windows that the cache holds, gathered ahead of the loop where a processor is left for that."""

        def gather(window: Indices) -> tuple[Batch, float]:
            return self._gathered(cache, window, query)

        row_bytes = self._info.embedding_dim * np.dtype(query.dtype).itemsize
        most = min(MOST, self._prefetch_bytes // max(1, len(windows[0]) * row_bytes)) if windows else 0
        is_alone = self._max_connections == 1  # in a DataLoader worker, which is ahead of the loop by itself
        if most < 2 or is_alone or not cache.in_host_memory or processors() < 2 * local_world_size():
            for window in windows:
                yield self._delivered(*gather(window), query)
            return
        ahead = gathered_ahead(windows, gather, most)
        try:
            for batch, seconds in ahead:
                yield self._delivered(batch, seconds, query)
                del batch  # the loop shall hold the only references when it asks for more
        finally:
            ahead.close()

    def _gathered(self, cache: SplitCache, window: Indices, query: BatchQuery) -> tuple[Batch, float]:
        """The samples, and the seconds that it took."""
        indices = window.copy() if "index" in query.columns else window  # the loop may keep or change its index column
        then = clock()
        return cache.gather(indices), clock() - then

    def _delivered(self, batch: Batch, seconds: float, query: BatchQuery) -> Batch:
        """What has been gathered in so many seconds, with all columns of the query."""
        self._tally.gathered(seconds, batch.num_rows)
        if "file_path" in query.columns:
            batch = replace(batch, file_paths=self._paths(batch.index))
        names = [name for name in query.columns if name not in COLUMNS]
        return replace(batch, labels=self._labels_of(names, batch)) if names else batch

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


@dataclass(frozen=True, slots=True)
class _Window:
    """Indices whose samples the cache holds by now. nbytes: of those; fetched: how many of them the service has sent for it."""

    indices: Indices
    nbytes: int
    fetched: int
