"""Large buffers, used again once nothing refers to them.

Allocating a megabyte costs a page fault for each of its 256 pages, more than filling it; so both ends of a stream reuse their
buffers. The question is when. A socket transport holds on to what it could not send yet, and a training loop to the batches that
it keeps. Neither says when it is done, but both drop their references: a lease is an array of its own over pooled memory, and
every view, memoryview or tensor made of it keeps it alive. When the last one is gone, the memory returns to the pool.

That happens wherever a loop drops its batch, most often in the main thread, where Python raises KeyboardInterrupt between any two
lines of ours. Of one that is raised while an object goes, Python only says "Exception ignored in", and the loop goes on as if
Ctrl-C had not been pressed. So no line of Python runs when a lease goes: its weak reference is itself what returns to the pool,
by a method of a deque, which is C.
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


class _Idle(weakref.ref[Bytes]):
    """A weak reference to a lease, with the memory that is idle once the lease is gone."""

    __slots__ = ("memory",)
    memory: Bytes


class _Leased(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """What a lease lies over: it lives as long as the lease, and so does the weak reference to that, which is kept here alone."""

    idle: _Idle


class BufferPool:
    """Hands out leases of byte buffers. Safe between threads; keeps at most `max_idle` unused buffers.

    allocate: makes new memory of the given size, (nbytes,) uint8 aligned to 64 bytes; pinned memory, for example.
    """

    def __init__(self, max_idle: int, allocate: Callable[[int], Bytes] = allocate_aligned) -> None:
        self._allocate = allocate
        self._idle: deque[_Idle] = deque(maxlen=max_idle)

    def lease(self, nbytes: int) -> Bytes:
        """A buffer that nobody else writes to while it, or anything made of it, is referred to. (nbytes,) uint8, aligned."""
        memory = self._reuse(nbytes)
        if memory is None:
            memory = self._allocate(nbytes)
        leased = memory.view(_Leased)
        # Over a memoryview, because views of a plain slice would refer to the pooled array and not to the lease.
        lease = np.frombuffer(leased.data, dtype=np.uint8, count=nbytes)
        leased.idle = _Idle(lease, self._idle.append)
        leased.idle.memory = memory
        return lease

    def _reuse(self, nbytes: int) -> Bytes | None:
        """The buffer that came back last (its pages are the warmest) if it is large enough; too small ones are let go."""
        try:
            memory = self._idle.pop().memory
        except IndexError:
            return None
        return memory if nbytes <= memory.size <= 2 * nbytes + ALIGNMENT * 1024 else None
