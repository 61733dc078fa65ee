"""Files that the kernel keeps in huge pages, because they are written in pieces of those.

Rows in random order miss the processor's cache of addresses (TLB) once or twice each while they lie in pages of 4 KB. Where a
file system has large folios (XFS; ext4 since Linux 6.16), what is written at once over a whole 2 MiB of the file lies in one page
of that size and is mapped as one: gathering from it takes a third less of the CPU. Elsewhere this is a file like any other.

In a virtual machine that tells its host which memory is free (a balloon with free page reporting), a huge page may have to be got
from there first, 4 KB at a time: ten times the CPU of writing, measured. So that is looked at, and given up where it is dear;
rewritten.py makes up for it later.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

import numpy as np

HUGE_PAGE_BYTES = 2 * 1024**2
WRITE_BYTES = 4 * HUGE_PAGE_BYTES
_SMALL_BYTES = HUGE_PAGE_BYTES // 2
_DEAR = 3.0
"""Times the CPU of small pages, from which on huge ones are given up. It is 1 where memory is the machine's own."""


@contextmanager
def huge_page_writer(file: IO[bytes], *, whatever_it_takes: bool = False) -> Iterator["HugePageWriter"]:
    """Write a new file, open and empty, from its beginning; the kernel has all of it when the block ends. Raises OSError."""
    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-write") as thread:
        writer = HugePageWriter(file, thread, whatever_it_takes)
        yield writer
        writer.flush()


class HugePageWriter:
    """Hands pieces of WRITE_BYTES to a thread, which writes one while the next is filled. Errors of a piece come with the next.

    is_huge: whether they have not been given up.
    """

    def __init__(self, file: IO[bytes], thread: ThreadPoolExecutor, whatever_it_takes: bool) -> None:
        self._file, self._thread = file, thread
        self._filled, self._other = np.empty(WRITE_BYTES, np.uint8), np.empty(WRITE_BYTES, np.uint8)
        self._num_filled = 0
        self._written: Future[None] | None = None
        self._small_s = 0.0  # CPU of the first piece, for comparison
        self._whatever_it_takes, self.is_huge = whatever_it_takes, True

    def write(self, data: bytes | memoryview) -> int:
        """As a file's. data: contiguous, and free again when this returns."""
        given = np.frombuffer(data, np.uint8)
        low = 0
        while low < len(given):
            part = given[low : low + WRITE_BYTES - self._num_filled]
            # A copy, of what is in the processor's cache: less is gathered at a time than is written at a time.
            self._filled[self._num_filled : self._num_filled + len(part)] = part
            self._num_filled += len(part)
            low += len(part)
            if self._num_filled == WRITE_BYTES:
                self._hand_over()
        return len(given)

    def flush(self) -> None:
        self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        self._wait()
        piece = self._filled[: self._num_filled]
        self._written = self._thread.submit(self._write, piece.data)
        self._filled, self._other, self._num_filled = self._other, self._filled, 0

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()
            self._written = None

    def _write(self, piece: memoryview) -> None:
        began, is_first = time.thread_time(), not self._small_s and not self._whatever_it_takes
        step = WRITE_BYTES if self.is_huge and not is_first else _SMALL_BYTES
        for low in range(0, len(piece), step):
            self._file.write(piece[low : low + step])
        took = time.thread_time() - began
        if is_first:
            self._small_s = took
        elif len(piece) == WRITE_BYTES and took > _DEAR * self._small_s and not self._whatever_it_takes:
            self.is_huge = False
