"""Batches of indices that become known bit by bit: streamed, or gathered where a cache holds all of their samples."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ..contract.plan import Indices
from ..stream.chosen import ChosenCourse
from ..stream.reader import Batch
from .cache import SplitCache


@dataclass(frozen=True, slots=True, eq=False)
class _Record:
    """Some training batches in one. indices (N,) int64 of all, sizes of each.

    asked: what is fetched, and put into the cache on its way; all of them, or those that the cache lacks.
    """

    indices: Indices
    sizes: list[int]
    asked: Indices

    @property
    def is_fetched(self) -> bool:
        return len(self.asked) > 0 or not len(self.indices)


class Chosen:
    """What `put` names, `get` brings, in that order. For one thread; `close` ends its own.

    fetch: fetches the record batches of a course ahead. gather: the samples at these indices, from the cache, into which so
    many of them have just been put. check: that the
    service holds the same data still, before what the cache holds is delivered.
    """

    def __init__(
        self,
        course: ChosenCourse,
        fetch: Callable[[ChosenCourse], Generator[Batch, None, None]],
        cache: SplitCache | None,
        gather: Callable[[Indices, int], Batch],
        check: Callable[[], None],
    ) -> None:
        self._course, self._fetch = course, fetch
        self._cache, self._gather, self._check = cache, gather, check
        self._records: deque[_Record] = deque()
        self._ahead: Generator[Batch, None, None] | None = None
        self._received = 0
        self._is_checked = False

    def put(self, batches: Sequence[Indices]) -> None:
        """The next training batches, each (B,) int64 within the split."""
        records = [self._record(group) for group in self._groups(batches)]
        self._records.extend(records)
        self._course.put(record.asked for record in records if record.is_fetched)

    def get(self) -> tuple[Batch, list[int]]:
        """The next training batches that were put, some in one, and the size of each."""
        record = self._records.popleft()
        batch: Batch | None = None
        if record.is_fetched:
            if self._ahead is None:
                self._ahead = self._fetch(self._course)
            batch = next(self._ahead)
            self._course.forget(self._received)
            self._received += 1
            self._is_checked = True  # the service has answered for this data
        if batch is not None and record.asked is record.indices:
            return batch, record.sizes
        if not self._is_checked:
            self._check()
            self._is_checked = True
        return self._gather(record.indices, len(record.asked)), record.sizes

    def finish(self) -> None:
        """After the last batch: read the reply to its end, so that its connection can serve the next epoch."""
        self._course.end()
        if self._ahead is not None:
            next(self._ahead, None)

    def close(self) -> None:
        self._course.end()
        if self._ahead is not None:
            self._ahead.close()

    def _groups(self, batches: Sequence[Indices]) -> list[list[Indices]]:
        """As many in a record batch as it may hold; but the first stands alone, for the loop waits for it."""
        most, rows = self._course.record_rows, 0
        is_begun = bool(self._received or self._records)
        groups: list[list[Indices]] = []
        for batch in batches:
            if not groups or rows + len(batch) > most or (len(groups) == 1 and not is_begun):
                groups.append([])
                rows = 0
            groups[-1].append(batch)
            rows += len(batch)
        return groups

    def _record(self, batches: list[Indices]) -> _Record:
        indices = batches[0] if len(batches) == 1 else np.concatenate(batches)
        sizes = [len(batch) for batch in batches]
        if self._cache is None or not len(indices):
            return _Record(indices, sizes, indices)
        missing = np.unique(self._cache.missing(indices))
        return _Record(indices, sizes, indices if 2 * len(missing) > len(indices) else missing)
