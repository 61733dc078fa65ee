"""`python -m benchmarks`: measure, print the table, write benchmarks/results and docs/images/benchmark.png."""

import argparse
import json
import shlex
import signal
import sys
import time
import traceback
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import (
    attacks,
    concurrency,
    figures,
    gpu,
    idioms,
    large,
    larger_than_memory,
    limits,
    memory,
    ours,
    paths,
    peers_local,
    peers_network,
    peers_pipelines,
    scaling,
    startup,
)
from .bench import Bench, Measurement, Options
from .chart import draw
from .findings import Outcome, Skipped
from .machine import machine, slug
from .processes import ROOT
from .report import Report, number, write

GROUPS = (
    idioms,
    ours,
    gpu,
    limits,
    paths,
    peers_network,
    peers_local,
    peers_pipelines,
    concurrency,
    memory,
    startup,
    scaling,
    large,
    larger_than_memory,
    figures,
    attacks,
)
MEASUREMENTS: tuple[Measurement, ...] = tuple(measurement for group in GROUPS for measurement in group.MEASUREMENTS)
RESULTS = ROOT / "benchmarks" / "results"
CHART = ROOT / "docs" / "images" / "benchmark.png"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when nothing failed. What stays below its target has not failed: the table says so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has it ignored
    signal.signal(signal.SIGTERM, _exit)
    given = parse(arguments)
    if given.list:
        print("\n".join(measurement.name for measurement in MEASUREMENTS))
        return 0
    chosen = [measurement for measurement in MEASUREMENTS if not given.only or measurement.name in given.only]
    options = Options(
        samples=given.samples,
        dim=given.dim,
        rounds=given.rounds,
        quick=given.quick,
        large=given.large,
        attacks=tuple(given.attacks),
    )
    whole = not given.quick and not given.only and not given.attacks
    where, now = machine(), time.localtime()
    path = None
    if whole or given.results:
        path = (given.results or RESULTS) / f"{time.strftime('%Y-%m-%d', now)}-{slug(where)}.json"
    report = Report(_command(), time.strftime("%Y-%m-%d %H:%M:%S %z", now), where, asdict(options), path)
    messages = Console(stderr=True)
    try:
        run(chosen, options, report, messages)
    except KeyboardInterrupt:
        messages.print("interrupted; what is measured is below" + (f" and in {path}" if path else ""))
        return 130
    finally:
        report.print(Console(width=None if sys.stdout.isatty() else 200))
    if path is not None:
        write(path.with_name("latest.json"), json.dumps(report.to_json(), indent=1))
    if whole and find_spec("matplotlib") is None:
        messages.print(f"no chart: matplotlib is missing, so {CHART} is not drawn anew; pip install 'cpstream[bench]'")
    elif whole:
        draw(report.findings, where, options.samples, options.dim, CHART)
    return int(any(outcome.status == "failed" for outcome in report.outcomes))


def run(chosen: list[Measurement], options: Options, report: Report, messages: Console) -> None:
    """Make the measurements one after the other. One that fails is recorded, and the rest goes on."""
    columns = (BarColumn(24), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        name = ""
        with Bench(options, lambda step: progress.update(task, description=f"{name}: {step}")) as bench:
            for measurement in chosen:
                name = measurement.name
                outcome = attempt(measurement, bench)
                report.add(outcome)
                progress.advance(task)
                for line in lines(outcome):
                    progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def attempt(measurement: Measurement, bench: Bench) -> Outcome:
    started = time.perf_counter()
    outcome = Outcome(name=measurement.name, status="done")
    try:
        outcome.findings.extend(measurement.measure(bench))
    except Skipped as reason:
        outcome.status, outcome.reason = "skipped", str(reason)
    except Exception as error:
        outcome.status, outcome.reason = "failed", f"{type(error).__name__}: {error}"
        traceback.print_exc(limit=-6)
    outcome.seconds = round(time.perf_counter() - started, 1)
    return outcome


def lines(outcome: Outcome) -> list[str]:
    """What is said as soon as a measurement is done."""
    if outcome.status != "done":
        return [f"{outcome.name}: {outcome.status}: {outcome.reason}"]
    took = f"{outcome.name} ({outcome.seconds:.0f} s): "
    return [f"{took}{finding.what}: {number(finding.value)} {finding.unit}, {finding.verdict}" for finding in outcome.findings]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [measurement.name for measurement in MEASUREMENTS]
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure cpstream side by side with the alternatives.")
    parser.add_argument("--quick", action="store_true", help="small data, 2 rounds: shows that the suite works, measures nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these measurements; see --list")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of every comparison (5; 2 with --quick)")
    parser.add_argument("--samples", type=int, help="samples of the split (200000; 4000 with --quick)")
    parser.add_argument("--large", type=int, help="samples of the split that fills the memory (10000000; 20000 with --quick)")
    parser.add_argument("--dim", type=int, help="numbers in an embedding (768; 64 with --quick)")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help=f"where the JSON goes ({RESULTS.relative_to(ROOT)}, for whole runs)"
    )
    parser.add_argument("--attacks", nargs="+", metavar="WORD", default=[], help="of attacks, those whose names hold one of these")
    parser.add_argument("--list", action="store_true", help="list the measurements and exit")
    given = parser.parse_args(arguments)
    for name, whole, quick in (("rounds", 5, 2), ("samples", 200_000, 4_000), ("large", 10_000_000, 20_000), ("dim", 768, 64)):
        if getattr(given, name) is None:
            setattr(given, name, quick if given.quick else whole)
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}; it must be 1 or more")
    return given


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
