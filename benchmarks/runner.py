"""Sides of a comparison, measured in turn: A, B, A, B, ... after a warm-up in which both must deliver the right content."""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from .data import checksum
from .findings import Kind, Series

Batches = Iterable[tuple[Any, Any]]
"""Pairs of embeddings (B, D) and cps (B,), tensors."""


class WrongContent(Exception):
    """A side delivered something else than the data."""


@dataclass(frozen=True)
class Pass:
    """One round of one side. samples is 0 where only bytes flow."""

    samples: int
    nbytes: int
    seconds: float
    cpu_s: float

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def gb_per_s(self) -> float:
        return self.nbytes / self.seconds / 1e9


class Side(Protocol):
    label: str
    kind: Kind

    def warm_up(self) -> None: ...

    def run(self, epoch: int) -> Pass: ...


@dataclass
class Loader:
    """A side that yields batches. epoch(k) makes the iterable of epoch k; content: the checksum that `samples` must have.

    step: what the loop does with each batch, if anything.
    """

    label: str
    epoch: Callable[[int], Batches]
    samples: int
    content: int
    kind: Kind = "ours"
    first_epoch: int = field(default=0)
    step: Callable[[Any, Any], None] | None = None

    def warm_up(self) -> None:
        """Read an epoch and compare its content."""
        total = count = 0
        for embeddings, cps in self.epoch(self.first_epoch):
            total += checksum(_array(embeddings), _array(cps))
            count += len(cps)
        if count != self.samples:
            raise WrongContent(f"{self.label}: {count} samples came, {self.samples} were expected")
        if total % 2**64 != self.content:
            raise WrongContent(f"{self.label}: the samples that came are not those of the data")

    def run(self, epoch: int) -> Pass:
        """Time an epoch from the making of its iterator to the last batch."""
        count = nbytes = 0
        with quiet():
            started, started_cpu = time.perf_counter(), time.process_time()
            for embeddings, cps in self.epoch(epoch):
                count += len(cps)
                nbytes += embeddings.nbytes + cps.nbytes
                if self.step is not None:
                    self.step(embeddings, cps)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        if count != self.samples:
            raise WrongContent(f"{self.label}: {count} samples came, {self.samples} were expected")
        return Pass(count, nbytes, seconds, cpu_s)


@dataclass
class Work:
    """A side that is one function: `work()` moves nbytes, checks itself, and yields no batches."""

    label: str
    work: Callable[[], None]
    nbytes: int
    samples: int = 0
    kind: Kind = "limit"

    def warm_up(self) -> None:
        self.work()

    def run(self, epoch: int) -> Pass:
        with quiet():
            started, started_cpu = time.perf_counter(), time.process_time()
            self.work()
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        return Pass(self.samples, self.nbytes, seconds, cpu_s)


class quiet:
    """No garbage collection while the clock runs; what lay about is collected before."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()


def interleave(sides: Iterable[Side], rounds: int, progress: Callable[[str], None]) -> list[list[Pass]]:
    """The passes of each side. A round runs every side once."""
    sides = list(sides)
    for side in sides:
        progress(f"warm-up, {side.label}")
        side.warm_up()
    passes: list[list[Pass]] = [[] for _ in sides]
    for number in range(1, rounds + 1):
        for side, done in zip(sides, passes, strict=True):
            progress(f"round {number} of {rounds}, {side.label}")
            done.append(side.run(number))
    return passes


def fastest(progress: Callable[[str], None], sides: Sequence[Loader]) -> Loader:
    """Of several settings of a peer, the one whose epoch takes least."""
    progress(f"warm-up, {sides[0].label}")
    sides[0].run(0)
    took = {}
    for side in sides:
        progress(f"looking for the best setting: {side.label}")
        took[side.label] = side.run(0).seconds
    return min(sides, key=lambda side: took[side.label])


def samples_per_s(side: Side, passes: list[Pass]) -> Series:
    return Series(side.label, [each.samples_per_s for each in passes], "samples/s", side.kind)


def gb_per_s(side: Side, passes: list[Pass]) -> Series:
    return Series(side.label, [each.gb_per_s for each in passes], "GB/s", side.kind)


def _array(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
