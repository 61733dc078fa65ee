"""Files and folders that are on the disk, not only in the kernel's memory, when a block ends."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO

_WRITE_BACK_S = 0.1


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is on the disk when the block ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written_back(file: IO[bytes]) -> Iterator[None]:
    """Have the file go to the disk while it grows, so that little is left for the fsync at its end. Raises OSError.

    The kernel reports a failure once: what it tells the thread must be raised, or the fsync would pass.
    """
    done = Event()

    def sync_often() -> None:
        while not done.wait(_WRITE_BACK_S):
            os.fdatasync(file.fileno())

    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-sync") as thread:
        syncing = thread.submit(sync_often)
        try:
            yield
        finally:
            done.set()
        syncing.result()


def sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
