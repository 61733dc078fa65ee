"""How long until the service is ready, and what reading the source costs. Every figure comes from a process of its own."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .bench import Bench, Measurement
from .data import make_data
from .findings import Finding, Series, Target, at_most, ratio
from .processes import answer
from .service import serving

OPEN = """
import sys, time
from pathlib import Path
import uvicorn
from cpstream_service.app import create_app
from cpstream_service.snapshot.load import load
from cpstream_service.settings import DataSettings, ServeSettings
started = time.perf_counter()
loaded = load(DataSettings(source_path=Path(sys.argv[1]), snapshot_dir=Path(sys.argv[2])))
create_app(loaded.snapshot, ServeSettings(), stale_reason=loaded.stale_reason)
print(time.perf_counter() - started)
"""
"""Everything between the imports and the first answer but binding the socket."""

UNPICKLE = """
import sys, time
import numpy as np
started = time.perf_counter()
np.load(sys.argv[1] + "/numpy_embs.npy", allow_pickle=True).item()
print(time.perf_counter() - started)
"""


READ = """
import sys, time
from pathlib import Path
from cpstream_service.sources.npy import read_npy
started = time.perf_counter()
read_npy(Path(sys.argv[1], "numpy_embs.npy"))
print(time.perf_counter() - started)
"""


def measure_start(bench: Bench) -> Iterator[Finding]:
    """`cpstream serve` from the start of its process to the first answer of /readyz; and without the imports."""
    source = bench.data.folder
    cold: list[float] = []
    warm: list[float] = []
    opened: list[float] = []
    with bench.scratch("start") as folder:
        for number in bench.starts("service"):
            shutil.rmtree(folder / "snapshots", ignore_errors=True)
            for times in (cold, warm):
                os.sync()
                with serving(source, folder / "snapshots") as service:
                    took = service.start_s
                if number:
                    times.append(took)
            took = open_s(source, folder / "snapshots")
            if number:
                opened.append(took)
    size = f"{bench.options.samples:,} x {bench.options.dim}"
    yield _seconds(f"first start to ready, {size}", cold)
    yield _seconds(f"warm start to ready, {size}, imports counted", warm)
    yield _seconds(f"warm start to ready, {size}, imports not counted", opened, at_most(0.5))


def _against_unpickling(name: str, what: str, make: Callable[[Bench, Path], Path], bound: float) -> Measurement:
    def measure(bench: Bench) -> Iterator[Finding]:
        ours: list[float] = []
        read: list[float] = []
        bare: list[float] = []
        with bench.scratch(name) as folder:
            source = make(bench, folder)
            for number in bench.starts(name):
                loaded = open_s(source, folder / "snapshots")
                alone, unpickled = (float(answer([sys.executable, "-c", code, str(source)])) for code in (READ, UNPICKLE))
                shutil.rmtree(folder / "snapshots")
                if number:
                    ours.append(loaded)
                    read.append(alone)
                    bare.append(unpickled)
        limit = Series("np.load(allow_pickle=True)", bare, "s", "limit")
        yield ratio(f"npy read by the allow-list, {what}, against bare unpickling", Series("read", read, "s"), limit)
        first = Series("first load", ours, "s")
        yield ratio(
            f"npy first load until it is on disk and verified, {what}, against bare unpickling", first, limit, at_most(bound)
        )

    return Measurement(name, measure)


def _arrays(bench: Bench, folder: Path) -> Path:
    return bench.data.folder


def _lists(bench: Bench, folder: Path) -> Path:
    """A quarter of the samples: as Python floats they take ten times the memory."""
    bench.progress("making a source of lists")
    return make_data(folder / "source", max(bench.options.samples // 4, 1), bench.options.dim, as_lists=True).folder


def open_s(source: Path, snapshot_dir: Path) -> float:
    """Seconds that a new process takes to open the source, its imports done."""
    os.sync()  # or its fsyncs would wait for what the benchmark itself has written
    return float(answer([sys.executable, "-c", OPEN, str(source), str(snapshot_dir)]))


def _seconds(what: str, values: list[float], target: Target | None = None) -> Finding:
    return Finding(what=what, values=values, unit="s", target=target, sides=(Series(what, values, "s"),))


MEASUREMENTS = (
    Measurement("start", measure_start),
    _against_unpickling("npy-arrays", "embeddings as arrays", _arrays, 2.0),
    _against_unpickling("npy-lists", "embeddings as lists", _lists, 1.5),
)
