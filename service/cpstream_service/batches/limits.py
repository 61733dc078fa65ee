"""Limits of a client that hold for all workers of a service together: files in a folder that they share, in memory.

limits.stream(client, most)   within, one of the streams that it may have: a byte of a file, locked; the kernel frees those of a
                              worker that dies
limits.moment(client)         a point in time, of the monotonic clock, which all processes of a machine have in common
"""

import fcntl
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from cpstream_client.files import no_follow

_BYTES = 8


class Moment:
    """A point in time that moves on, for one process."""

    def __init__(self) -> None:
        self.at_s = -math.inf

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, nobody else moves it."""
        yield


class SharedMoment(Moment):
    """The same for all processes that have this file open. Nobody waits for the lock for longer than an addition takes."""

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        os.ftruncate(self._file, _BYTES)  # zeros: the moment at which the machine started
        self._value = memoryview(mmap.mmap(self._file, _BYTES)).cast("d")

    @property
    def at_s(self) -> float:
        return self._value[0]

    @at_s.setter
    def at_s(self, at_s: float) -> None:
        self._value[0] = at_s

    @contextmanager
    def alone(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


class Slots:
    """What there is a number of, for all processes that have this file open. Locks are a process's own: it opens the file once."""

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        self._held: set[int] = set()

    def take(self, most: int) -> int | None:
        """One of the first so many that nobody has; None where there is none."""
        for slot in range(most):
            if slot not in self._held:
                try:
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                except (BlockingIOError, PermissionError):  # another process has it; which of them is the system's choice
                    continue
                self._held.add(slot)
                return slot
        return None

    def give(self, slot: int) -> None:
        self._held.discard(slot)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, slot)


class Limits:
    """Those of all clients that have some. One a process, for its event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots: dict[str, Slots] = {}
        self._moments: dict[str, Moment] = {}

    @contextmanager
    def stream(self, client: str, most: int) -> Iterator[bool]:
        """Within, one stream more of this client's is open, unless it has as many as it may: whether that is so."""
        slots = self._slots.get(client) or self._slots.setdefault(client, Slots(self._path("streams", client)))
        slot = slots.take(most)
        try:
            yield slot is not None
        finally:
            if slot is not None:
                slots.give(slot)

    def moment(self, client: str) -> Moment:
        return self._moments.get(client) or self._moments.setdefault(client, SharedMoment(self._path("moment", client)))

    def _path(self, what: str, client: str) -> Path:
        return self._folder / f"{what}-{quote(client, safe='')}"


def _opened(path: Path) -> int:
    return no_follow(str(path), os.O_RDWR | os.O_CREAT)
