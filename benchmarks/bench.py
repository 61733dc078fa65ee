"""What a run has in common: its options, its temporary folder, the data and the service, each made when first needed."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .data import Data, make_data
from .findings import Finding
from .raw_stream import warm
from .runner import Pass, Side, interleave
from .service import Service, serving


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured. quick: only that the suite works; its figures mean nothing."""

    samples: int = 200_000
    dim: int = 768
    rounds: int = 5
    quick: bool = False
    large: int = 10_000_000
    """Samples of what is measured with a split that fills the memory."""
    attacks: tuple[str, ...] = ()
    """Words; of the attacks, those whose names hold one of them. All without any."""

    def pick(self, whole: int, quick: int) -> int:
        """A size that a quick run makes smaller."""
        return quick if self.quick else whole


class Bench:
    """One run. Everything that it opened or wrote is gone when its block ends."""

    def __init__(self, options: Options, progress: Callable[[str], None]) -> None:
        self.options = options
        self.progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> "Bench":
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cpstream-bench-", ignore_cleanup_errors=True))
        self.folder = Path(folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def data(self) -> Data:
        self.progress("making the data")
        return make_data(self.folder / "source", self.options.samples, self.options.dim)

    @cached_property
    def service(self) -> Service:
        data = self.data
        self.progress("starting the service")
        service = self._stack.enter_context(serving(data.folder, self.folder / "snapshots"))
        warm(service, self.folder / "snapshots")
        return service

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder for one measurement."""
        folder = self.folder / name
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def starts(self, what: str) -> Iterator[int]:
        """Numbers of the rounds of what starts processes: 0 is the warm-up, which a quick run, with its one round, leaves out."""
        rounds = self.options.pick(self.options.rounds, 1)
        for number in range(self.options.pick(0, 1), rounds + 1):
            self.progress(f"round {number} of {rounds}, {what}" if number else f"warm-up, {what}")
            yield number

    def interleave(self, *sides: Side) -> list[list[Pass]]:
        return interleave(sides, self.options.rounds, self.progress)


@dataclass(frozen=True)
class Measurement:
    """A named part of the suite, one or more lines of its table. Raises Skipped where it cannot be made."""

    name: str
    measure: Callable[[Bench], Iterable[Finding]]
