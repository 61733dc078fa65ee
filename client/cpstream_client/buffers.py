"""Large buffers, used again once nothing refers to them.

Allocating a megabyte costs a page fault for each of its 256 pages, more than filling it; so both ends of a stream reuse their
buffers. The question is when. A socket transport holds on to what it could not send yet, and a training loop to the batches that
it keeps. Neither says when it is done, but both drop their references: a lease is an array of its own over pooled memory, and
every view, memoryview or tensor made of it keeps it alive. When the last one is gone, the memory returns to the pool.
"""

import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
ALIGNMENT = 64
"""Of every lease: a cache line, and what Arrow recommends for its buffers."""


def allocate_aligned(nbytes: int) -> Bytes:
    """Uninitialised memory. (nbytes,) uint8, aligned to 64 bytes."""
    memory = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + nbytes]


class BufferPool:
    """Hands out leases of byte buffers. Safe between threads; keeps at most `max_idle` unused buffers.

    allocate: makes new memory of the given size, (nbytes,) uint8 aligned to 64 bytes; pinned memory, for example.
    """

    def __init__(self, max_idle: int, allocate: Callable[[int], Bytes] = allocate_aligned) -> None:
        self._allocate = allocate
        self._idle: deque[Bytes] = deque(maxlen=max_idle)

    def lease(self, nbytes: int) -> Bytes:
        """A buffer that nobody else writes to while it, or anything made of it, is referred to. (nbytes,) uint8, aligned."""
        memory = self._reuse(nbytes)
        if memory is None:
            memory = self._allocate(nbytes)
        # Over a memoryview, because views of a plain slice would refer to the pooled array and not to the lease.
        lease = np.frombuffer(memory.data, dtype=np.uint8, count=nbytes)
        weakref.finalize(lease, self._idle.append, memory).atexit = False
        return lease

    def _reuse(self, nbytes: int) -> Bytes | None:
        """The buffer that came back last (its pages are the warmest) if it is large enough; too small ones are let go."""
        try:
            memory = self._idle.pop()
        except IndexError:
            return None
        return memory if nbytes <= memory.size <= 2 * nbytes + ALIGNMENT * 1024 else None
