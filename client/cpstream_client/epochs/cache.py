"""Samples kept where they are used: the first epoch fills a cache while it streams, later ones gather from it.

A cache holds one split of one fingerprint and dtype. It is filled in whatever order samples arrive and knows which it has, so
that an epoch that was left, or one rank of several, leaves a usable part. The order of samples is never the cache's affair: it
is asked for indices, and the plan says which.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..buffers import BufferPool, Bytes, allocate_aligned
from ..contract.bodies import SplitInfo
from ..contract.plan import Indices
from ..contract.wire import Dtype
from ..locks import new_lock
from ..stream.reader import Batch

IDLE_BUFFERS = 64


class SplitCache(Protocol):
    """Where batches of a split are kept. embeddings (N, D) and cps (N,) by index."""

    dtype: Dtype
    in_host_memory: bool
    """Whether gathering is the processor's work."""

    def missing(self, among: Indices | None = None) -> Indices:
        """Which of these indices (by default: of all, ascending) have not been put yet. (M,) int64."""

    def put(self, batch: Batch) -> None:
        """Keep a batch, which must have its index column."""

    def gather(self, indices: Indices) -> Batch:
        """The samples at these indices, which must have been put, in this order. Valid for as long as it is referred to."""


def cache_bytes(info: SplitInfo, dtype: Dtype) -> int:
    """What a MemoryCache of the split takes: the samples, and where each of them is."""
    return info.num_samples * (info.embedding_dim * np.dtype(dtype).itemsize + 4 + 8)


class MemoryCache:
    """A split in this process's memory, in the order in which it came: so it is written from end to end, and with as few page
    faults as there can be. Gathers at the speed of np.take. Safe between threads.

    allocate: where the batches that it makes shall lie.
    """

    in_host_memory = True

    def __init__(self, info: SplitInfo, dtype: Dtype, allocate: Callable[[int], Bytes] = allocate_aligned) -> None:
        self.dtype: Dtype = dtype
        n = info.num_samples
        self._rows: Any = np.empty((n, info.embedding_dim), dtype)
        self._cps: Any = np.empty(n, np.float32)
        self._place: Any = np.full(n, -1, np.int64)  # of each index, in the two above
        self._filled = 0
        self._filling = new_lock()
        self._pool = BufferPool(IDLE_BUFFERS, allocate)

    def missing(self, among: Indices | None = None) -> Indices:
        if self._filled == len(self._place):
            return np.empty(0, np.int64)
        return np.flatnonzero(self._place < 0) if among is None else among[self._place[among] < 0]

    def put(self, batch: Batch) -> None:
        assert batch.index is not None  # noqa: S101 - the caller asked for the column
        with self._filling:
            index, embeddings, cps = batch.index, batch.embeddings, batch.cps
            # The padding of an epoch, or two iterations at once, bring some twice.
            new, first = np.unique(index, return_index=True)
            first = first[self._place[new] < 0]
            if len(first) < len(index):
                first.sort()
                index, embeddings, cps = index[first], embeddings[first], cps[first]  # type: ignore[index]
            low, high = self._filled, self._filled + len(index)
            self._rows[low:high] = embeddings
            self._cps[low:high] = cps
            self._place[index] = np.arange(low, high)  # last: whoever gathers must not see it before the row
            self._filled = high

    def gather(self, indices: Indices) -> Batch:
        return gathered(self._rows, self._cps, self._place.take(indices), indices, self._pool)


def gathered(rows: Any, cps: Any, places: Indices, indices: Indices, pool: BufferPool) -> Batch:
    """Rows (N, D) and cps (N,) at these places, as the batch of these indices, in a buffer of the pool."""
    row_bytes = rows.shape[1] * rows.itemsize
    lease = pool.lease(max(1, len(places) * row_bytes))
    taken = lease[: len(places) * row_bytes].view(rows.dtype).reshape(len(places), rows.shape[1])
    if len(places):
        # mode="raise" would gather elsewhere first and copy; the indices come from a plan
        np.take(rows, places, axis=0, out=taken, mode="clip")
    return Batch(taken, cps.take(places), indices, None, len(places), taken.nbytes)
