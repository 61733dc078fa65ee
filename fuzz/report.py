"""The table of a run, and its progress."""

import sys
import time

from rich.console import Console
from rich.table import Table

from .runs import Outcome

KINDS = ("traceback", "crash", "hang", "memory")
_EVERY_S = 10.0


class Report:
    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._said = time.monotonic()

    @property
    def failed(self) -> bool:
        return any(outcome.counts for outcome in self._outcomes)

    def progress(self, outcome: Outcome) -> None:
        if time.monotonic() - self._said > _EVERY_S:
            self._said = time.monotonic()
            failed = outcome.counts.total()
            print(f"{outcome.target}: {outcome.tried:,} in {outcome.seconds:.0f} s, {failed} failed", file=sys.stderr, flush=True)

    def add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    def print(self, seed: int) -> None:
        table = Table(title=f"python -m fuzz, seed {seed}", title_justify="left")
        columns = (
            "mutations",
            "accepted",
            "refused",
            "tracebacks",
            "crashes",
            "hangs",
            "over memory",
            "most MB",
            "slowest CPU s",
            "seconds",
        )
        for name in ("target", *columns):
            table.add_column(name, justify="left" if name == "target" else "right")
        for each in self._outcomes:
            counts = [f"{each.counts[kind]:,}" for kind in KINDS]
            numbers = (f"{each.most_bytes / 1e6:.0f}", f"{each.slowest_s:.2f}", f"{each.seconds:.0f}")
            table.add_row(each.target, f"{each.tried:,}", f"{each.accepted:,}", f"{each.refused:,}", *counts, *numbers)
        tried = sum(each.tried for each in self._outcomes)
        failed = sum(each.counts.total() for each in self._outcomes)
        Console(width=None if sys.stdout.isatty() else 140).print(table)
        print(f"{tried:,} mutations, {failed:,} failed; most MB: of memory beyond 10 times the file, of one mutation")
