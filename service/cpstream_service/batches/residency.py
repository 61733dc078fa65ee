"""Data larger than memory: which pages of a mapped split to have when.

A split that fits is mapped and stays in the page cache. One that does not is read by page faults, and for rows in random order
the kernel's read-ahead then reads thousands of times what is asked for (measured 1 900 times). So read-ahead is switched off for it
(MADV_RANDOM), and the rows of the batches to come are asked for by name (MADV_WILLNEED), many at once, before they are gathered.
"""

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cpstream_client.cgroups import CGROUPS, PROC_CGROUP, limiting
from cpstream_client.contract.plan import BLOCK_ROWS, WINDOW_BLOCKS, Indices, Shuffle

FITS = 0.7
"""Share of the memory limit that mapped data may fill and still count as fitting; the rest is for buffers and the interpreter."""
ROWS_AHEAD = 4096
"""Rows asked for before they are gathered: enough for the disk to sort and overlap its reads."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def memory_limit_bytes(proc_cgroup: str = PROC_CGROUP, cgroups: str = CGROUPS) -> int:
    """The least of this machine's memory and the limits of this process's cgroup (version 1 or 2) and its ancestors."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, version in limiting("memory", proc_cgroup, cgroups):
        try:
            limits.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
        except (OSError, ValueError):  # no limit there: no file, or "max"
            continue
    return min(limits)


class Residency:
    """Whether arrays fit in memory together, and how to read them if not."""

    def __init__(self, total_bytes: int, limit_bytes: int | None = None) -> None:
        self.limit_bytes = memory_limit_bytes() if limit_bytes is None else limit_bytes
        self.fits = total_bytes <= FITS * self.limit_bytes

    def prepare(self, rows: np.ndarray[Any, Any]) -> None:
        """Switch read-ahead off for a mapped array (N, D) that does not fit."""
        if not self.fits:
            _madvise(rows, 0, rows.nbytes, mmap.MADV_RANDOM)

    def ahead(self, rows: np.ndarray[Any, Any], batches: Iterable[Indices], shuffle: Shuffle) -> Iterator[Indices]:
        """The same batches, each handed out after the rows of the next ROWS_AHEAD samples were asked for."""
        if self.fits:
            yield from batches
            return
        # Blocks are read whole, since the rest of a block is wanted soon; single rows otherwise.
        extents = _Extents(rows, 1 if shuffle == "uniform" else BLOCK_ROWS)
        waiting: deque[Indices] = deque()
        num_waiting = 0
        for batch in batches:
            extents.will_need(batch)
            waiting.append(batch)
            num_waiting += len(batch)
            while num_waiting > ROWS_AHEAD and len(waiting) > 1:
                num_waiting -= len(waiting[0])
                yield waiting.popleft()
        yield from waiting


class _Extents:
    """Asks for runs of `rows_each` rows, each run once while it is likely to stay."""

    def __init__(self, rows: np.ndarray[Any, Any], rows_each: int) -> None:
        self._rows, self._rows_each = rows, rows_each
        self._extent_bytes = rows_each * rows.strides[0]
        self._asked: set[int] = set()

    def will_need(self, indices: Indices) -> None:
        extents = np.unique(indices // self._rows_each).tolist()
        if self._rows_each > 1:
            extents = [extent for extent in extents if extent not in self._asked]
            if len(self._asked) > 2 * WINDOW_BLOCKS:
                self._asked.clear()
            self._asked.update(extents)
        for extent in extents:
            _madvise(self._rows, extent * self._extent_bytes, self._extent_bytes, mmap.MADV_WILLNEED)


def _madvise(rows: np.ndarray[Any, Any], offset: int, nbytes: int, advice: int) -> None:
    """madvise for the pages of a part of an array. By libc and not by mmap.madvise, which keeps the GIL while the disk seeks."""
    begin = rows.ctypes.data + offset
    end = min(begin + nbytes, rows.ctypes.data + rows.nbytes)
    begin -= begin % mmap.PAGESIZE
    if _libc.madvise(begin, end - begin, advice) != 0 and advice == mmap.MADV_RANDOM:
        raise OSError(ctypes.get_errno(), "madvise failed")  # WILLNEED is a wish: without it the gather only waits
