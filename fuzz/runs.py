"""Runs of a target in forked processes, so that a crash, a hang or a memory bomb is caught, counted and kept.

Mutation number i of a seed is the same whatever the number of processes: each draws from Random(f"{seed}:{target}:{i}").
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .target import MOST_BYTES, Case, Target, peak_bytes

HANG_S = 60.0
"""Of one mutation, on a machine that may be busy."""
_ADDRESS_SPACE = 8 * 1024**3
"""More than a worker has at its start: a bomb shall not take the machine along."""
_SLOT = struct.Struct("<qqqqqd")  # next index, tried, accepted, most bytes over 10 times the size, finished, slowest seconds
_POLL_S = 0.05
_NOT_BEGUN = 70
"""Exit code of a worker that no mutation has ended."""


@dataclass(frozen=True)
class Failure:
    """kind: traceback, crash, hang or memory. index: of the mutation. where: by which equal failures are known."""

    kind: str
    index: int
    where: str
    text: str


@dataclass
class Outcome:
    """What became of a target's mutations. most_bytes: of memory that a mutation took beyond 10 times its size."""

    target: str
    tried: int = 0
    accepted: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    most_bytes: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    """One of each kind and place."""

    @property
    def refused(self) -> int:
        return self.tried - self.accepted - self.counts.total()


class _Shared:
    """A worker's numbers, which outlive it."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SLOT.size)

    def read(self) -> tuple[int, int, int, int, int, float]:
        return _SLOT.unpack(self._map[:])  # type: ignore[return-value]

    def write(self, *values: float) -> None:
        self._map[:] = _SLOT.pack(*values)


@dataclass
class _Worker:
    shared: _Shared
    step: int
    pid: int = 0
    pipe: int = -1
    unread: bytes = b""
    seen: int = -1
    since: float = 0.0


def run(
    target: Target,
    state: Any,
    folder: Path,
    *,
    seed: int,
    count: int,
    seconds: float | None = None,
    first: int = 0,
    jobs: int = 2,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Try mutations `first` to `count`, or as many as there is time for. folder: for the files of the workers."""
    outcome = Outcome(target.name)
    began = time.monotonic()
    deadline = began + seconds if seconds is not None else float("inf")
    workers = []
    for each in range(jobs):
        worker = _Worker(_Shared(), jobs)
        worker.shared.write(first + each, 0, 0, 0, 0, 0.0)
        _fork(worker, target, state, folder, seed, count, jobs, deadline)
        workers.append(worker)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        while any(worker.pid for worker in workers):
            time.sleep(_POLL_S)
            for worker in [worker for worker in workers if worker.pid]:
                if _look_after(worker, outcome):
                    _fork(worker, target, state, folder, seed, count, jobs, deadline)
            _sum(outcome, workers)
            outcome.seconds = time.monotonic() - began
            progress(outcome)
    finally:
        for worker in workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome.cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return outcome


def drawn(case: Case, target: str, seed: int, index: int) -> bytes:
    return case.draw(Random(f"{seed}:{target}:{index}"))


def _sum(outcome: Outcome, workers: list[_Worker]) -> None:
    numbers = [worker.shared.read() for worker in workers]
    outcome.tried = sum(each[1] for each in numbers)
    outcome.accepted = sum(each[2] for each in numbers)
    outcome.most_bytes = max(each[3] for each in numbers)
    outcome.slowest_s = max(each[5] for each in numbers)


def _look_after(worker: _Worker, outcome: Outcome) -> bool:
    """Hear what a worker says. Whether it must be started again: it has died of its last mutation, or hung and was killed."""
    index, tried, accepted, most, finished, slowest = worker.shared.read()
    now = time.monotonic()
    if index != worker.seen:
        worker.seen, worker.since = index, now
    hung = not finished and now - worker.since > HANG_S
    if hung:
        os.kill(worker.pid, signal.SIGKILL)
    pid, status = os.waitpid(worker.pid, 0 if hung else os.WNOHANG)
    _hear(worker, outcome)
    if not pid:
        return False
    worker.pid = 0
    os.close(worker.pipe)
    index, tried, accepted, most, finished, slowest = worker.shared.read()
    if finished:
        return False
    kind = "hang" if hung else "crash"
    code = os.waitstatus_to_exitcode(status)
    if code == _NOT_BEGUN:
        raise RuntimeError(f"a worker of {outcome.target} failed by itself; its traceback is above")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    _note(outcome, Failure(kind, index, how, f"the process ended by {how}" + (f" after {HANG_S:.0f} s" if hung else "")))
    worker.shared.write(index + worker.step, tried + 1, accepted, most, 0, slowest)  # from there the next one goes on
    return True


def _hear(worker: _Worker, outcome: Outcome) -> None:
    while True:
        try:
            piece = os.read(worker.pipe, 65536)
        except BlockingIOError:
            break
        if not piece:
            break
        worker.unread += piece
    *lines, worker.unread = worker.unread.split(b"\n")
    for line in lines:
        _note(outcome, Failure(**json.loads(line)))


def _note(outcome: Outcome, failure: Failure) -> None:
    outcome.counts[failure.kind] += 1
    if all((known.kind, known.where) != (failure.kind, failure.where) for known in outcome.failures):
        outcome.failures.append(failure)


def _fork(worker: _Worker, target: Target, state: Any, folder: Path, seed: int, count: int, jobs: int, deadline: float) -> None:
    receive, send = os.pipe()
    os.set_blocking(receive, False)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: this process has none of its own
        pid = os.fork()
    if pid:
        os.close(send)
        worker.pid, worker.pipe, worker.unread, worker.seen = pid, receive, b"", -1
        return
    code = _NOT_BEGUN
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_address_space()
        _work(worker.shared, send, target, state, folder, seed, count, jobs, deadline)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _limit_address_space() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _work(
    shared: _Shared, send: int, target: Target, state: Any, folder: Path, seed: int, count: int, jobs: int, deadline: float
) -> None:
    index, tried, accepted, most, _, slowest = shared.read()
    own = folder / f"{target.name}-{os.getpid()}"
    own.mkdir()
    with target.start(state, own) as case:
        while index < count and time.monotonic() < deadline:
            shared.write(index, tried, accepted, most, 0, slowest)
            data = drawn(case, target.name, seed, index)
            failure, was_accepted, over, took_s = judged(case, data, index)
            most, slowest, tried = max(most, over), max(slowest, took_s), tried + 1
            accepted += was_accepted
            if failure is not None:
                os.write(send, json.dumps(failure.__dict__).encode() + b"\n")
            index += jobs
        shared.write(index, tried, accepted, most, 1, slowest)


def judged(case: Case, data: bytes, index: int = 0) -> tuple[Failure | None, bool, int, float]:
    """Try a mutation: what is wrong, whether it was accepted, bytes of memory beyond 10 times its size, and seconds."""
    _forget_peak()
    before = peak_bytes()
    began = time.process_time()  # another process may have the processor
    accepted, failure = False, None
    try:
        accepted = case.accepts(data)
    except BaseException as error:
        failure = Failure("traceback", index, _place(error), traceback.format_exc()[-6000:])
    took_s = time.process_time() - began
    over = max(0, peak_bytes() - before - 10 * len(data), getattr(case, "beside_bytes", 0) - 10 * len(data))
    if failure is None and over > MOST_BYTES:
        accepted = False
        failure = Failure("memory", index, "memory", f"{over / 1e6:.0f} MB more than 10 times its {len(data)} bytes")
    return failure, accepted, over, took_s


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if "/site-packages/" not in frame.filename] or list(frames)
    return f"{type(error).__name__} in {last[-1].name} ({Path(last[-1].filename).name}:{last[-1].lineno})" if last else repr(error)


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")
