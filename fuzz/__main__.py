"""`python -m fuzz`: try mutations of everything that cpstream reads, print a table, keep what fails."""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import npy, replies, snapshots, tables, take
from .report import Report
from .runs import Outcome, drawn, judged, run
from .seeds import prepared
from .target import Target

TARGETS = {
    target.name: target
    for target in (npy.TARGET, tables.CSV_TARGET, tables.TABLES_TARGET, take.TARGET, replies.TARGET, snapshots.TARGET)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 where every mutation was accepted or refused as it should be."""
    given = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="cpstream-fuzz-", dir=_fast()) as temporary:
        folder = Path(temporary)
        if given.replay:
            return max([replay(path, folder) for path in given.replay])
        report = Report()
        for name in given.targets:
            target = TARGETS[name]
            state = prepared(target, folder)
            outcome = run(
                target,
                state,
                folder,
                seed=given.seed,
                count=given.count,
                seconds=given.seconds,
                first=given.first,
                jobs=given.jobs,
                progress=report.progress,
            )
            report.add(outcome)
            keep(outcome, target, state, folder, given.seed, given.keep)
    report.print(given.seed)
    return int(report.failed)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, help="mutations of each target (5000, or as many as --seconds allow)")
    parser.add_argument("--seconds", type=float, help="for each target at most")
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(TARGETS), help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations: the same ones each time (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for what fails (fuzz-failures)")
    parser.add_argument("--replay", type=Path, nargs="+", help="try files again that a run has kept")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]!r}; targets: {', '.join(TARGETS)}")
    if given.count is None:
        given.count = sys.maxsize if given.seconds else 5000
    return given


def keep(outcome: Outcome, target: Target, state: Any, folder: Path, seed: int, into: Path) -> None:
    """Write what failed into files, and say how each is tried again."""
    if not outcome.failures:
        return
    into.mkdir(parents=True, exist_ok=True)
    own = folder / f"{target.name}-kept"
    own.mkdir()
    with target.start(state, own) as case:
        for failure in outcome.failures:
            data = drawn(case, target.name, seed, failure.index)
            path = into / f"{target.name}-{hashlib.blake2b(data, digest_size=6).hexdigest()}"
            path.write_bytes(data)
            print(f"\n{failure.kind}: {target.name}, seed {seed}, mutation {failure.index}, {len(data)} bytes: {failure.text}")
            print(f"again: python -m fuzz --replay {path}", flush=True)


def replay(path: Path, folder: Path) -> int:
    """Try a kept file in this process, so that a debugger can look. Returns 1 where it fails still."""
    target = TARGETS[path.name.rpartition("-")[0]]
    own = folder / f"replay-{path.name}-{time.monotonic_ns()}"
    state = prepared(target, folder)
    own.mkdir()
    with target.start(state, own) as case:
        failure, accepted, over, took_s = judged(case, path.read_bytes())
    verdict = "accepted" if accepted else "refused"
    print(f"{path}: {failure.kind + ': ' + failure.text if failure else verdict} ({took_s:.3f} s, {over / 1e6:.0f} MB)")
    return int(failure is not None)


def _fast() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
