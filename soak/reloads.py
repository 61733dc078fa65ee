"""`python -m soak.reloads`: one reload after the other under a trainer, and what a service then holds of memory, files and disk.

Each time the rates are others; an epoch of each version is compared with the truth. Meanwhile /livez is asked, on a connection of
its own each time, as an orchestrator does. Fails where a batch is wrong, where /livez took longer than it may, or where after the
last reload more is held than after the second.
"""

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.service import Service, serving
from rich.console import Console
from rich.table import Table

from cpstream_client.torch import StreamingEmbeddingsDataset

from .truth import SPLIT, Truth
from .watch import GROWTH, numbers, with_children

BATCH, SEED = 256, 3
LIVE_S = 0.25
"""In which /livez must answer."""
EVERY_S = 0.01
PHASES = ("starting", "reloading", "streaming")
UNITS = {"memory": "memory, MB", "disk": "disk, MB"}


@dataclass(frozen=True)
class Held:
    """What a service holds: memory of its own and disk in MB, the rest in numbers. files: of snapshots that are mapped."""

    memory: float
    threads: float
    descriptors: float
    files: float
    disk: float

    @classmethod
    def by(cls, service: Service, snapshots: Path) -> "Held":
        pids = with_children(service.pid)
        mapped: set[str] = set()
        for pid in pids:
            mapped |= set(re.findall(rf"{re.escape(str(snapshots))}\S+", Path(f"/proc/{pid}/maps").read_text()))
        disk = sum(path.stat().st_blocks * 512 for path in snapshots.rglob("*") if path.suffix != ".log")
        return cls(**numbers(pids), files=len(mapped), disk=disk / 1e6)


@contextmanager
def asking(log: Path) -> Iterator[tuple["Synchronized[int]", Connection]]:
    """Within, another process asks for /livez. Gives the phase, to be set, and what says how long each took, once it is asked."""
    context = multiprocessing.get_context("spawn")
    phase, ended = context.Value("i", 0), context.Event()
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask, args=(log, phase, ended, theirs), daemon=True)
    process.start()
    ours.recv()  # it has come so far: it sees the service start
    try:
        yield phase, ours
    finally:
        ended.set()
        process.join(10)


def _ask(log: Path, phase: "Synchronized[int]", ended: Event, to: Connection) -> None:
    took: dict[int, list[float]] = defaultdict(list)
    url = None
    to.send(None)
    while not ended.is_set():
        if url is None:
            found = re.search(r"(?:listening|serving) at (http://[\w.:]+)", log.read_text() if log.exists() else "")
            url = found and f"{found[1]}/livez"
        else:
            now, began = phase.value, time.perf_counter()
            with urllib.request.urlopen(url, timeout=60) as reply:
                reply.read()
            took[now].append(time.perf_counter() - began)
        if to.poll():
            to.recv()
            to.send(dict(took))
            return
        time.sleep(EVERY_S)


def asked(url: str, method: str = "GET") -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as reply:
        return json.loads(reply.read())


def reload(url: str) -> None:
    """Raises SystemExit where it fails."""
    number = asked(f"{url}/v1/reload", "POST")["number"]
    # None for a moment: the first version is served before it is told that it is.
    while (last := asked(f"{url}/v1/versions")["last_reload"]) is None or last["number"] < number:
        time.sleep(0.05)
    if last["outcome"] != "succeeded":
        raise SystemExit(f"soak.reloads: {last}")


def stream(url: str, truth: Truth, number: int) -> None:
    """An epoch, always in the same order, of which the service keeps as many as it has room for. Raises WrongBatch."""
    order = truth.order(SEED, 0)
    dataset = StreamingEmbeddingsDataset(url, SPLIT, batch_size=BATCH, shuffle=True, seed=SEED, cache=None, rank=0, world_size=1)
    for step, (embeddings, cps) in enumerate(dataset):
        truth.check(order[step * BATCH : (step + 1) * BATCH], embeddings, cps, f"reload {number}, step {step}")


def run(given: argparse.Namespace, folder: Path) -> tuple[dict[int, Held], dict[str, list[float]]]:
    """What is held after each reload, by its number; how long each /livez took in s, by phase."""
    truth, held = Truth.of(given.samples, given.dim), {}
    truth.write(folder / "source")
    snapshots = folder / "snapshots"
    options = ("--workers", str(given.workers), "--keep-for", "0s")
    with (
        asking(snapshots / "service.log") as (phase, took),
        serving(folder / "source", snapshots, *options, timeout_s=600) as service,
    ):
        for number in range(1, given.reloads + 1):
            truth = replace(truth, cps=(5 + np.random.default_rng(number).random(given.samples) * 10).astype(np.float32))
            truth.write_rates(folder / "source")
            phase.value = PHASES.index("reloading")
            reload(service.url)
            phase.value = PHASES.index("streaming")
            stream(service.url, truth, number)
            while len(list(snapshots.glob("[!.]*/"))) > 2:  # those that nobody needs any more go within a second
                time.sleep(0.1)
            held[number] = Held.by(service, snapshots)
        took.send(None)
        times = {PHASES[at]: values for at, values in took.recv().items()}
    return held, times


def report(given: argparse.Namespace, held: dict[int, Held], times: dict[str, list[float]]) -> bool:
    """Whether all is as it is to be."""
    shown = sorted({number for number in (1, 2, 5, 10, 20, 30, 40, given.reloads) if number <= given.reloads})
    title = (
        f"python -m soak.reloads --reloads {given.reloads} --samples {given.samples} --dim {given.dim} --workers {given.workers}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("after", *(UNITS.get(name, name) for name in Held.__dataclass_fields__)):
        table.add_column(name, justify="right")
    for number in shown:
        table.add_row(f"{number} reloads", *(f"{value:.1f}".removesuffix(".0") for value in vars(held[number]).values()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    is_well = True
    for name, values in sorted(times.items()):
        worst = max(values)
        is_well &= worst <= LIVE_S
        console.print(
            f"/livez while {name}: {len(values):,} times, median {np.median(values) * 1e3:.1f} ms, worst {worst * 1e3:.1f}"
        )
    if given.reloads > 2:
        second, last = vars(held[2]), vars(held[given.reloads])
        for name, value in last.items():
            share, least = GROWTH.get(name, (0.0, 0.1))
            if value > second[name] + max(share * second[name], least):
                console.print(f"{name} grew from {second[name]:.1f} to {value:.1f}")
                is_well = False
    return is_well


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m soak.reloads", description=__doc__)
    parser.add_argument("--reloads", type=int, default=50, help="how many (50)")
    parser.add_argument("--samples", type=int, default=20_000, help="of the split (20000)")
    parser.add_argument("--dim", type=int, default=128, help="numbers of an embedding (128)")
    parser.add_argument("--workers", type=int, default=1, help="of the service (1)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cpstream-reloads-") as folder:
        return int(not report(given, *run(given, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
