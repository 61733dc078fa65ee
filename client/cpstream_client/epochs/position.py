"""Where an epoch stands: set by the process of the training loop, seen by its DataLoader workers. No torch, no network."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawValue
from typing import Any

from ..contract.bodies import Problem
from ..contract.plan import Plan
from ..contract.wire import ErrorCode
from ..errors import StateMismatch, error_of


class _Shared(ctypes.Structure):
    _fields_ = (
        ("epoch", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("read_by_workers", ctypes.c_bool),
        ("announced", ctypes.c_bool),
        ("passes", ctypes.c_int64),
        ("fingerprint", ctypes.c_char * 256),
    )


class Position:
    """The epoch and start of the next iteration, and the fingerprint of the data that it is of, once that is known.

    In memory that worker processes share, forked or spawned: persistent workers live through many epochs, and this is how
    they hear of the next. (The memory's file is unlinked when it is made; the last process to end frees it.) A process that
    inherited a position and moves it gets one of its own, so that the ranks of one machine do not move each other's.
    """

    def __init__(self, epoch: int = 0, start: int = 0, fingerprint: str = "", announced: bool = False) -> None:
        self._shared = _new_memory(epoch, start, fingerprint, announced)
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        """On its way to a child process it shares the memory; any other copy has memory of its own, and goes its own way."""
        if get_spawning_popen() is not None:
            return _sharing, (self._shared, self._owner)
        return Position, (self.epoch, self.start, self.fingerprint, self.announced)

    def set(self, epoch: int, start: int) -> None:
        """For the process of the loop; a worker only reads."""
        self._own()
        self._shared.epoch, self._shared.start, self._shared.read_by_workers, self._shared.passes = epoch, start, False, 0

    def announce(self) -> None:
        """The caller chooses the epochs, from now on: none is to be guessed."""
        self._own()
        self._shared.announced = True

    def _own(self) -> None:
        # Memory that workers have read since the last `set` is that of this process's own workers: it must go on.
        if self._owner != os.getpid() and not self.read_by_workers:
            self._shared = _new_memory(self.epoch, self.start, self.fingerprint, self.announced)
        self._owner = os.getpid()

    @property
    def epoch(self) -> int:
        return int(self._shared.epoch)

    @property
    def start(self) -> int:
        return int(self._shared.start)

    @property
    def read_by_workers(self) -> bool:
        """Whether a worker process has iterated since `set`, so that this process cannot know how far the loop is."""
        return bool(self._shared.read_by_workers)

    def mark_read_by_worker(self) -> None:
        self._shared.read_by_workers = True

    @property
    def announced(self) -> bool:
        """Whether set_epoch has ever been called."""
        return bool(self._shared.announced)

    @property
    def passes(self) -> int:
        """How often workers have read the whole epoch since `set`."""
        return int(self._shared.passes)

    def count_pass(self) -> None:
        self._shared.passes += 1

    @property
    def fingerprint(self) -> str:
        """Of the data that the first of the processes met; "" before that."""
        return bytes(self._shared.fingerprint).decode()

    def move(self, fingerprint: str) -> None:
        """Hold all processes to other data. For the process of the loop, between epochs."""
        self._own()
        self._shared.fingerprint = fingerprint.encode()

    def pin(self, fingerprint: str) -> None:
        """Hold all processes to this data. Raises DatasetChanged where they are held to other data."""
        if not self.fingerprint:
            self._shared.fingerprint = fingerprint.encode()
        if self.fingerprint != fingerprint:
            changed = ErrorCode.DATASET_CHANGED
            detail = f"a DataLoader worker met data with fingerprint {fingerprint}, another one {self.fingerprint}"
            extra: dict[str, Any] = {"expected": self.fingerprint, "actual": fingerprint}
            problem = Problem(
                type="about:blank",
                title=changed.title,
                status=changed.status,
                detail=detail,
                instance="",
                code=changed.code,
                request_id="",
                **extra,
            )
            raise error_of(problem, "no-request")


def _new_memory(epoch: int, start: int, fingerprint: str, announced: bool) -> Any:
    return RawValue(_Shared, epoch, start, False, announced, 0, fingerprint.encode())


def _sharing(memory: Any, owner: int) -> Position:
    position = Position()
    position._shared, position._owner = memory, owner
    return position


@dataclass(slots=True)
class Run:
    """One iteration over (the rest of) an epoch.

    delivered: batches that the training loop has received; in a worker, that the worker has made. counted_by_loader: whether the
    loop itself counts them, although workers make them. advances: whether the next epoch follows when this one is complete.
    """

    plan: Plan
    delivered: int = 0
    counted_by_loader: bool = False
    advances: bool = False

    @property
    def finished(self) -> bool:
        return self.delivered >= self.plan.num_steps

    def resume_at(self) -> tuple[int, int]:
        """Epoch and start with which to go on; at the end of an epoch, the beginning of the next."""
        if self.finished:
            return self.plan.epoch + 1, 0
        return self.plan.epoch, self.plan.start_after(self.delivered)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a state must agree with: the same data in the same order."""

    fingerprint: str
    split: str
    seed: int
    shuffle: bool | str

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises StateMismatch, with both values, when the state belongs to something else."""
        if "sampler" in state:
            raise StateMismatch(
                f"the state is of a loader with a sampler, {state['sampler']}; load it into loader(dataset, sampler=...)"
            )
        for name in ("fingerprint", "split", "seed", "shuffle"):
            if name not in state:
                raise StateMismatch(f"the state has no {name!r}; it is not one that state_dict() of this class returned")
            check_equal(name, state[name], getattr(self, name))
        for name in ("epoch", "start"):
            if not isinstance(state.get(name), int) or state[name] < 0:
                raise StateMismatch(f"the state's {name} is {state.get(name)!r}; it must be a whole number, 0 or more")


def check_equal(name: str, in_state: object, here: object) -> None:
    """Raises StateMismatch, with both values, when they differ."""
    if in_state != here:
        raise StateMismatch(
            f"the state has {name} {in_state!r}, this dataset has {here!r}; "
            f"resume with the {name} of the state, or start a new run without it"
        )
