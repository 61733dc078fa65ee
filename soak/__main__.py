"""`python -m soak`: minutes of mixed load with faults against a real service of two workers; every batch compared with the truth.

Fails where a batch is wrong, a good client fails, or memory, threads or descriptors of the service or of a long-lived client are
not flat: soak/watch.py has the rule.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from benchmarks.processes import end, environment
from benchmarks.service import serving
from rich.console import Console
from rich.table import Table
from tests.faultproxy import KINDS, FaultProxy

from .plot import draw
from .truth import Truth
from .watch import GROWTH, Series, numbers, with_children

ROOT = Path(__file__).parents[1]
PLOT = ROOT / "docs" / "images" / "soak.png"
SAMPLE_S, SAY_S, KILL_S = 5.0, 30.0, 90.0
WORKERS = 2
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""One arena, and large pieces given back: glibc's usual ones, one a thread, fill with holes for long, which would hide a leak."""
FAULTS = tuple(kind for kind in KINDS if kind != "flip_request")
"""Every connection breaks here, and a refusal that comes twice in a row is believed: see "Refusals" in docs/guarantees.md."""


class Actors:
    """The processes that ask. counts: what they say that they have done."""

    def __init__(self, kinds: Sequence[str], arguments: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self.processes = {kind: self._start(kind, arguments) for kind in kinds}
        self._said: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        for kind, process in self.processes.items():
            threading.Thread(target=self._listen, args=(kind, process.stdout), daemon=True).start()

    @property
    def counts(self) -> Counter[str]:
        return sum(self._said.values(), Counter())

    @property
    def failed(self) -> list[str]:
        return [kind for kind, process in self.processes.items() if process.poll() not in (None, 0)]

    def complaints(self) -> str:
        """The last of what those said that failed."""
        return "\n".join((self._folder / f"{kind}.err").read_text()[-4000:] for kind in self.failed)

    @property
    def done(self) -> bool:
        return all(process.poll() is not None for process in self.processes.values())

    def _start(self, kind: str, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "soak.actors", kind, *arguments]
        with (self._folder / f"{kind}.err").open("wb") as errors:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(ALLOCATOR),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def _listen(self, kind: str, lines: IO[str]) -> None:
        for line in lines:
            self._said[kind] = Counter(json.loads(line))


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    seconds = given.minutes * 60
    series = {(name, kind): Series(name, kind) for name in ("service", "client") for kind in GROWTH}
    kills: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cpstream-soak-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        Truth.of(given.samples, given.dim).write(folder / "source")
        options = ("--workers", str(WORKERS))
        service = stack.enter_context(serving(folder / "source", folder / "snapshots", *options, env=ALLOCATOR))
        proxy = stack.enter_context(FaultProxy(service.url, given.seed, reply_bytes=2_000_000, kinds=FAULTS))
        task = [service.url, proxy.url, str(given.samples), str(given.dim), str(seconds), str(given.seed)]
        actors = Actors(("good", "workers", "bad"), task, folder)
        for process in actors.processes.values():
            stack.callback(end, process)
        began = time.monotonic()
        sampled, said, killed = began, began, began
        while not actors.done and not actors.failed:
            time.sleep(0.2)
            now = time.monotonic()
            if now - began > seconds + 150:
                print("the actors do not end", flush=True)
                break
            if now - began < seconds and now - sampled >= SAMPLE_S:
                sampled = now
                pids = {"service": with_children(service.pid), "client": [actors.processes["good"].pid]}
                for name, of in pids.items():
                    for kind, value in numbers(of).items():
                        series[name, kind].times.append(now - began)
                        series[name, kind].values.append(value)
            if now - began < seconds - KILL_S and now - killed >= KILL_S:
                killed = now
                kill_worker(service.pid)
                kills.append(now - began)
            if now - said >= SAY_S:
                said = now
                print(f"{(now - began) / 60:.1f} min: {line_of(actors.counts, proxy.counts, len(kills))}", flush=True)
        counts, failed, faults = actors.counts, actors.failed, proxy.counts
        print(actors.complaints())
        log = (folder / "snapshots" / "service.log").read_text()
    return report(given, series, kills, counts, faults, failed or ([] if actors.done else ["not ended"]), log)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long (20)")
    parser.add_argument("--samples", type=int, default=20_000, help="of the split (20000)")
    parser.add_argument("--dim", type=int, default=128, help="numbers of an embedding (128)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (0)")
    parser.add_argument("--plot", type=Path, default=PLOT, help="where the picture goes (docs/images/soak.png)")
    return parser.parse_args(arguments)


def kill_worker(supervisor: int) -> None:
    """The youngest worker, so that another one lives as long as the run."""
    workers = [pid for pid in with_children(supervisor)[1:] if "spawn_main" in _command(pid)]
    if len(workers) == WORKERS:
        os.kill(max(workers), signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def line_of(counts: Counter[str], faults: Counter[str], kills: int) -> str:
    done = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return f"{done}; {faults.total():,} faults, {kills} workers killed"


def report(
    given: argparse.Namespace,
    series: dict[tuple[str, str], Series],
    kills: list[float],
    counts: Counter[str],
    faults: Counter[str],
    failed: list[str],
    log: str,
) -> int:
    verdicts = [each.verdict() for each in series.values()]
    table = Table(title=f"python -m soak --minutes {given.minutes:g} --seed {given.seed}", title_justify="left")
    for name in ("of", "what", "median", "most", "growth", "may grow by", ""):
        table.add_column(name, justify="left" if name in ("of", "what", "") else "right")
    for each in verdicts:
        share, least = GROWTH[each.series.kind]
        allowed = max(share * each.median, least)
        numbers_of = (f"{each.median:.1f}", f"{each.most:.1f}", f"{each.growth:+.2f}", f"{allowed:.1f}")
        unit = "memory, MB" if each.series.kind == "memory" else each.series.kind
        table.add_row(each.series.name, unit, *numbers_of, "flat" if each.is_flat else "GROWS")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(line_of(counts, faults, len(kills)))
    print("faults: " + ", ".join(f"{count:,} {name}" for name, count in sorted(faults.items())))
    tracebacks = log.count("Traceback (most recent call last)")
    print(f"service log: {len(log.splitlines()):,} lines, {tracebacks} tracebacks; failed: {', '.join(failed) or 'nobody'}")
    if any(each.times for each in series.values()):
        title = f"{given.minutes:g} minutes of mixed load: {faults.total():,} faults, {len(kills)} workers killed"
        draw(list(series.values()), kills, title, given.plot)
        print(f"drawn: {given.plot}")
    if tracebacks:
        print(log[log.index("Traceback (most recent call last)") :][:3000])
    return int(bool(failed or tracebacks) or not all(each.is_flat for each in verdicts))


if __name__ == "__main__":
    sys.exit(main())
