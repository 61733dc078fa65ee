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
    """Some training batches in one. indices (N,) int64 of all, sizes of each; is_local: the cache holds all of them."""

    indices: Indices
    sizes: list[int]
    is_local: bool


class Chosen:
    """What `put` names, `get` brings, in that order. For one thread; `close` ends its own.

    fetch: fetches the record batches of a course ahead. gather: the samples at these indices, from the cache. check: that the
    service holds the same data still, before what the cache holds is delivered.
    """

    def __init__(
        self,
        course: ChosenCourse,
        fetch: Callable[[ChosenCourse], Generator[Batch, None, None]],
        cache: SplitCache | None,
        gather: Callable[[Indices], Batch],
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
        self._course.put(record.indices for record in records if not record.is_local)

    def get(self) -> tuple[Batch, list[int]]:
        """The next training batches that were put, some in one, and the size of each."""
        record = self._records.popleft()
        if record.is_local:
            if not self._is_checked:
                self._check()
            self._is_checked = True
            return self._gather(record.indices), record.sizes
        if self._ahead is None:
            self._ahead = self._fetch(self._course)
        batch = next(self._ahead)
        self._course.forget(self._received)
        self._received += 1
        return batch, record.sizes

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
        is_local = self._cache is not None and not len(self._cache.missing(indices))
        return _Record(indices, [len(batch) for batch in batches], is_local)
