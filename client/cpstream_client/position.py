"""Where an epoch stands: set by the process of the training loop, seen by its DataLoader workers. No torch, no network."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

from .errors import StateMismatch
from .plan import Plan

_EPOCH, _START, _READ_BY_WORKERS = range(3)


class Position:
    """The epoch and start of the next iteration.

    In memory that worker processes share, forked or spawned: persistent workers live through many epochs, and this is how
    they hear of the next. (The memory's file is unlinked when it is made; the last process to end frees it.)
    """

    def __init__(self, epoch: int = 0, start: int = 0) -> None:
        self._shared = RawArray(ctypes.c_int64, 3)
        self.set(epoch, start)

    def set(self, epoch: int, start: int) -> None:
        self._shared[_EPOCH], self._shared[_START], self._shared[_READ_BY_WORKERS] = epoch, start, 0

    @property
    def epoch(self) -> int:
        return self._shared[_EPOCH]

    @property
    def start(self) -> int:
        return self._shared[_START]

    @property
    def read_by_workers(self) -> bool:
        """Whether a worker process has iterated since `set`, so that this process cannot know how far the loop is."""
        return bool(self._shared[_READ_BY_WORKERS])

    def mark_read_by_worker(self) -> None:
        self._shared[_READ_BY_WORKERS] = 1

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # on its way to a child process, which shall share the memory
            return {"_shared": self._shared}
        return {"epoch": self.epoch, "start": self.start}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_shared" in state:
            self._shared = state["_shared"]
        else:
            Position.__init__(self, state["epoch"], state["start"])


@dataclass(slots=True)
class Run:
    """One iteration over (the rest of) an epoch. delivered: batches that the training loop has received."""

    epoch: int
    plan: Plan
    delivered: int = 0

    @property
    def finished(self) -> bool:
        return self.delivered >= self.plan.num_steps

    def resume_at(self) -> tuple[int, int]:
        """Epoch and start with which to go on; at the end of an epoch, the beginning of the next."""
        if self.finished:
            return self.epoch + 1, 0
        return self.epoch, self.plan.start_after(self.delivered)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a state must agree with: the same data in the same order."""

    fingerprint: str
    split: str
    seed: int
    shuffle: bool | str

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises StateMismatch, with both values, when the state belongs to something else."""
        for name in ("fingerprint", "split", "seed", "shuffle"):
            if name not in state:
                raise StateMismatch(f"the state has no {name!r}; it is not one that state_dict() of this class returned")
            if state[name] != getattr(self, name):
                raise StateMismatch(
                    f"the state has {name} {state[name]!r}, this dataset has {getattr(self, name)!r}; "
                    f"resume with the {name} of the state, or start a new run without it"
                )
        for name in ("epoch", "start"):
            if not isinstance(state.get(name), int) or state[name] < 0:
                raise StateMismatch(f"the state's {name} is {state.get(name)!r}; it must be a whole number, 0 or more")
