"""`python -m benchmarks.versus REVISION`: another commit against this tree, in turn, in one run on the same data.

Each commit has its own service and its own trainer, both alive all the time, and every round asks one after the other, changing who
begins. A figure of this tree is sound where it lies within the spread of the other commit's rounds, or on its better side.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from .data import SPLIT, make_data
from .memory import settled
from .processes import ROOT, answer, ask, cpu_s, end, environment
from .raw_stream import RawStream, warm
from .service import Service, serving
from .startup import UNPICKLE

PAUSED_STREAMS = 16
IMPORT = "import time; began = time.perf_counter(); import cpstream_client; print(time.perf_counter() - began)"
Loads = list[tuple[str, list[list[float]]]]
"""Figures by name, a list of values for each commit."""


@dataclass
class Commit:
    """One side. tree: where its code lies."""

    name: str
    tree: Path
    service: Service = field(init=False)
    trainer: "subprocess.Popen[str]" = field(init=False)

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self.tree / 'client'}:{self.tree / 'service'}"}

    def ask(self, kind: str, batch_size: int, epoch: int) -> dict[str, float]:
        """An epoch of the trainer, with the CPU that its service took for it."""
        before = cpu_s(self.service.pid)
        reply: dict[str, float] = ask(self.trainer, {"kind": kind, "batch_size": batch_size, "epoch": epoch})
        return {**reply, "service_cpu_s": cpu_s(self.service.pid) - before}

    def script(self, code: str, *arguments: str) -> float:
        """Seconds that a fresh interpreter prints."""
        return float(answer([sys.executable, "-c", code, *arguments], env=self.env))


def rate(kind: str, batch_size: int) -> Callable[[Commit, int], float]:
    def measure(commit: Commit, epoch: int) -> float:
        got = commit.ask(kind, batch_size, epoch)
        return got["samples"] / got["seconds"]

    return measure


def cpu(side: str) -> Callable[[Commit, int], float]:
    def measure(commit: Commit, epoch: int) -> float:
        got = commit.ask("stream", 256, epoch)
        return got[side] / (got["bytes"] / 1e9)

    return measure


def take_cpu(commit: Commit, epoch: int) -> float:
    got = commit.ask("take", 256, epoch)
    return got["cpu_s"] / (got["samples"] / 256) * 1e6


def memory(commit: Commit, epoch: int) -> float:
    with ExitStack() as stack:
        before = settled(commit.service.pid)
        for seed in range(PAUSED_STREAMS):
            stream = stack.enter_context(closing(RawStream(commit.service, epoch * 1000 + seed, None)))
            stream.ask()
            stream.pause()
        return (settled(commit.service.pid) - before) / PAUSED_STREAMS / 1e6


MEASUREMENTS: dict[str, tuple[str, bool, Callable[[Commit, int], float]]] = {
    # name: unit, whether more is better, what measures it
    "streaming-256": ("samples/s", True, rate("stream", 256)),
    "streaming-32": ("samples/s", True, rate("stream", 32)),
    "take": ("samples/s", True, rate("take", 256)),
    "take-cpu": ("us of CPU a batch, trainer", False, take_cpu),
    "cache-memory": ("samples/s", True, rate("cached", 256)),
    "client-cpu": ("CPU s/GB", False, cpu("cpu_s")),
    "service-cpu": ("CPU s/GB", False, cpu("service_cpu_s")),
    "memory-per-stream": ("MB", False, memory),
    "import-client": ("s", False, lambda commit, _: commit.script(IMPORT)),
}


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The tree of a revision, in a folder."""
    tree = folder / "tree"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


@contextmanager
def running(commit: Commit, source: Path, folder: Path) -> Iterator[None]:
    """The commit's service and trainer."""
    with serving(source, folder / commit.name, env=commit.env) as commit.service:
        command = [sys.executable, str(ROOT / "benchmarks" / "trainer.py"), commit.service.url]
        commit.trainer = subprocess.Popen(
            command, env=environment(commit.env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            warm(commit.service, folder / commit.name)
            yield
        finally:
            end(commit.trainer)


def first_load(commits: list[Commit], source: Path, folder: Path, rounds: int, console: Console) -> Loads:
    """From the start of `serve` to ready, without a snapshot and with one; beside bare unpickling of the same file."""
    cold: list[list[float]] = [[] for _ in commits]
    warm: list[list[float]] = [[] for _ in commits]
    bare: list[float] = []
    for number in range(rounds):
        console.print(f"first load, round {number + 1} of {rounds}")
        for i, commit in _in_turn(commits, number):
            for times in (cold, warm):
                os.sync()
                with serving(source, folder / "load", env=commit.env) as service:
                    times[i].append(service.start_s)
            shutil.rmtree(folder / "load")
        bare.append(float(answer([sys.executable, "-c", UNPICKLE, str(source)])))
    return [("first-load", cold), ("warm-start", warm), ("(bare unpickling)", [bare, bare])]


def _in_turn(commits: list[Commit], number: int) -> list[tuple[int, Commit]]:
    numbered = list(enumerate(commits))
    return numbered if number % 2 == 0 else numbered[::-1]


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.versus", description=__doc__)
    parser.add_argument("revision", help="the commit to compare this tree with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--only", nargs="+", choices=[*MEASUREMENTS, "first-load"], default=[*MEASUREMENTS, "first-load"])
    given = parser.parse_args()
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cpstream-versus-")))
        tree = stack.enter_context(checked_out(given.revision, folder))
        console.print("making the data")
        source = make_data(folder / "source", given.samples, given.dim).folder
        commits = [Commit(given.revision, tree), Commit("this", ROOT)]
        loads: Loads = []
        if "first-load" in given.only:
            loads = first_load(commits, source, folder, min(given.rounds, 3), console)
        for commit in commits:
            stack.enter_context(running(commit, source, folder))
        table = Table("figure", "unit", title=f"{given.samples:,} x {given.dim}, {SPLIT}, {given.rounds} rounds in turn")
        for column in (f"{given.revision}: median (least to most)", "this: median (least to most)", "this/other", ""):
            table.add_column(column, justify="right")
        for name, values in loads:
            table.add_row(name, "s", *_row(*values, more=False))
        for name in given.only:
            if name not in MEASUREMENTS:
                continue
            unit, more, measure = MEASUREMENTS[name]
            values = [[], []]
            for number in range(given.rounds + 1):  # the first is the warm-up
                console.print(f"{name}, round {number} of {given.rounds}")
                for i, commit in _in_turn(commits, number):
                    value = measure(commit, number)
                    if number:
                        values[i].append(value)
            table.add_row(name, unit, *_row(*values, more=more))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0


def _row(other: list[float], this: list[float], *, more: bool) -> tuple[str, str, str, str]:
    ratio = median(ours / theirs if theirs else math.nan for ours, theirs in zip(this, other, strict=True))  # 0: too short
    inside = median(this) >= min(other) if more else median(this) <= max(other)
    return _spread(other), _spread(this), f"{ratio:.3f}", "ok" if inside else "WORSE"


def _spread(values: list[float]) -> str:
    return f"{median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


if __name__ == "__main__":
    sys.exit(main())
