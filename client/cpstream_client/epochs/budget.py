"""How much memory datasets may keep splits in unasked: a quarter of what is free, for all datasets of a process together."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..cgroups import CGROUPS, limiting

SHARE = 4
"""One part in so many of the free memory."""
_UNLIMITED = 2**60
"""Version 1 says 2^63 less a page where there is no limit."""


def free_bytes(proc: str = "/proc", cgroups: str = CGROUPS) -> int | None:
    """The lower of this machine's free memory and what the limits of this process's cgroups (version 1 or 2) leave.

    None where the system does not say.
    """
    free = [*_of_machine(proc), *_of_cgroups(f"{proc}/self/cgroup", cgroups)]
    return max(0, min(free)) if free else None


def _of_machine(proc: str) -> Iterator[int]:
    try:
        with open(f"{proc}/meminfo") as file:
            yield from (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except OSError:
        try:
            yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):  # macOS has no such name
            return


def _of_cgroups(proc_cgroup: str, cgroups: str) -> Iterator[int]:
    for folder, version in limiting("memory", proc_cgroup, cgroups):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        try:
            limit, used = (int((folder / name).read_text()) for name in names)
        except (OSError, ValueError):  # no limit there: no file, or "max"
            continue
        if limit < _UNLIMITED:
            yield limit - used + _reclaimable(folder)


def _reclaimable(cgroup: Path) -> int:
    """Cached pages of files that nobody has used lately: they count as used, and the kernel takes them when it needs them."""
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    of = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    return of.get("total_inactive_file", of.get("inactive_file", 0))


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether so many bytes may be kept; while it lives, nobody else gets them.

    budget_bytes: what was left, None where that is not known. why: in words.
    """

    granted: bool
    nbytes: int
    budget_bytes: int | None
    why: str


class Budget:
    """What caches of this process hold together. Safe between threads. free: free_bytes."""

    def __init__(self, free: Callable[[], int | None] = free_bytes) -> None:
        self._free, self._lock = free, threading.Lock()
        self._held: dict[object, int] = {}  # changed in single steps, because the garbage collector releases at any moment
        self._whole_bytes = 0  # when the first of those that hold something came

    @property
    def held_bytes(self) -> int:
        return sum(list(self._held.values()))

    def take(self, nbytes: int) -> Verdict:
        """Hold so many bytes, whatever the budget: somebody has asked for just that."""
        return self._holding(Verdict(True, nbytes, None, f"{_mb(nbytes)} as asked for"))

    def ask(self, nbytes: int) -> Verdict:
        """Hold so many bytes if they are within the budget."""
        with self._lock:
            free, held = self._free(), self.held_bytes
            if free is None:
                return Verdict(False, nbytes, None, "this system does not say how much memory is free")
            ranks = local_world_size()
            now = free // (SHARE * ranks)
            if not held:
                self._whole_bytes = now
            # What is held has been taken from the free memory, too, as far as it is filled by now.
            left = max(0, min(now, self._whole_bytes - held))
            budget = f"a budget of {_mb(left)}, a quarter of the free memory" + (f" for each of {ranks} processes" * (ranks > 1))
            budget += f" less {_mb(held)} of other datasets" * (held > 0)
            if nbytes > left:
                return Verdict(False, nbytes, left, f"{_mb(nbytes)} exceed {budget}")
            return self._holding(Verdict(True, nbytes, left, f"{_mb(nbytes)} of {budget}"))

    def _holding(self, verdict: Verdict) -> Verdict:
        key = object()
        self._held[key] = verdict.nbytes
        weakref.finalize(verdict, self._held.pop, key).atexit = False
        return verdict


def local_world_size() -> int:
    """How many ranks share this machine, as torchrun says."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(given)) if given.isdecimal() else 1


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB" if nbytes >= 1e6 else f"{nbytes / 1e6:.1g} MB"


BUDGET = Budget()
"""That of this process."""
os.register_at_fork(after_in_child=lambda: BUDGET.__init__())  # type: ignore[misc] # the lock may be held by a thread that is not copied
