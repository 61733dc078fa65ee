"""Over long lines: the first epoch of a new dataset beside as many bytes of raw TCP on 1, 4 and 16 connections, all fresh."""

from collections.abc import Iterator
from statistics import median

from .bench import Bench, Measurement
from .data import make_data
from .findings import Finding, Series, at_least, at_most
from .links import FarTrainer, Line, far
from .loaders import BATCH

LINES = (Line(1000, 40), Line(1000, 80), Line(1000, 80, 0.01), Line(200, 150, 0.1))
FAST, NEAR = Line(10_000, 10), Line(10_000, 0)
RAW_CONNECTIONS = (1, 4, 16)
SECONDS = 4.0
"""What is sent takes a line at least so long, if an epoch is so large."""
MOST_ROUNDS = 3
FIRST_ROUND_TRIPS_MS = (40, 80, 150)
SMALL_BATCH, SMALL_DIM = 32, 256


def steps_of(bench: Bench, line: Line) -> int:
    """Training batches that take the line about SECONDS."""
    wanted = line.rate_mbit * 1e6 / 8 * SECONDS / (bench.options.dim * 4 + 4) / BATCH
    return max(1, min(round(wanted), -(-len(bench.data) // BATCH)))


def sides_of(bench: Bench, line: Line) -> tuple[list[Series], list[float]]:
    """Mbit/s of ours and of raw TCP on each number of connections, and our samples a second."""
    rounds = min(bench.options.rounds, MOST_ROUNDS)
    ours: list[float] = []
    samples: list[float] = []
    raw: dict[int, list[float]] = {number: [] for number in RAW_CONNECTIONS}
    with bench.scratch("line") as folder:
        source = bench.data.folder
        with far(line, source, bench.folder / "snapshots", folder / "service.log") as trainer:
            for number in range(rounds):
                bench.progress(f"{line}, round {number + 1} of {rounds}")
                (got,) = trainer.ask(epochs=1, batch_size=BATCH, steps=steps_of(bench, line))
                ours.append(got["bytes"] * 8 / 1e6 / got["seconds"])
                samples.append(got["samples"] / got["seconds"])
                for connections, values in raw.items():
                    took = trainer.ask(raw=connections, bytes=got["bytes"])
                    values.append(took["bytes"] * 8 / 1e6 / took["seconds"])
    raws = [Series(f"raw TCP, {number} connections, {line}", values, "Mbit/s", "limit") for number, values in raw.items()]
    return [Series(f"cpstream, {line}", ours, "Mbit/s"), *raws], samples


def note_of(line: Line, ours: Series, raws: list[Series], samples: list[float]) -> str:
    beside = ", ".join(f"{series.median:,.0f}" for series in raws)
    share = ours.median / line.rate_mbit
    return f"{ours.median:,.0f} Mbit/s, {share:.0%} of the line, {median(samples):,.0f} samples/s; raw TCP on 1, 4, 16: {beside}"


def measure_lines(bench: Bench) -> Iterator[Finding]:
    for line in LINES[: bench.options.pick(len(LINES), 1)]:
        (ours, *raws), samples = sides_of(bench, line)
        best = max(raws, key=lambda series: series.median)
        values = [now / most for now, most in zip(ours.values, best.values, strict=True)]
        note = note_of(line, ours, raws, samples)
        yield Finding(
            what=f"{line}: streaming, batch {BATCH}, against the best of raw TCP",
            values=values,
            target=at_least(0.9),
            sides=(ours, best, *(series for series in raws if series is not best)),
            note=note,
        )


def measure_fast_line(bench: Bench) -> Iterator[Finding]:
    """Against raw TCP on 4 connections or what these CPUs bring over such a line without delay, whichever is less."""
    (ours, *raws), samples = sides_of(bench, FAST)
    (near, *_), _ = sides_of(bench, NEAR)
    limits = [min(raws[1].median, near.median)] * len(ours.values)
    yield Finding(
        what=f"{FAST}: streaming, batch {BATCH}, against raw TCP on 4 connections, or streaming without delay where that is less",
        values=[now / limit for now, limit in zip(ours.values, limits, strict=True)],
        target=at_least(0.9),
        sides=(ours, raws[1], raws[0], raws[2], near),
        note=f"{note_of(FAST, ours, raws, samples)}; streaming without delay: {near.median:,.0f}",
    )


def measure_first_batch(bench: Bench) -> Iterator[Finding]:
    """From a new dataset to its first batch, in round trips, beside a fresh TCP connection that asks for the same bytes."""
    with bench.scratch("small") as folder:
        small = make_data(folder / "source", bench.options.pick(28_539, 1000), SMALL_DIM)
        for round_trip_ms in FIRST_ROUND_TRIPS_MS[: bench.options.pick(len(FIRST_ROUND_TRIPS_MS), 1)]:
            line = Line(1000, round_trip_ms)
            with far(line, bench.data.folder, bench.folder / "snapshots", folder / "service.log") as trainer:
                yield from _first(bench, trainer, line, BATCH, bench.options.dim, more=2)
            with far(line, small.folder, folder / "snapshots", folder / "small.log") as trainer:
                yield from _first(bench, trainer, line, SMALL_BATCH, SMALL_DIM, in_all=5)


def _first(
    bench: Bench, trainer: FarTrainer, line: Line, batch_size: int, dim: int, more: int | None = None, in_all: int | None = None
) -> Iterator[Finding]:
    round_trip_s = line.round_trip_ms / 1000
    ours, raw = [], []
    for _ in range(min(bench.options.rounds, MOST_ROUNDS)):
        (got,) = trainer.ask(epochs=1, batch_size=batch_size, steps=1)
        ours.append(got["first_s"] / round_trip_s)
        raw.append(trainer.ask(raw=1, bytes=got["bytes"])["first_s"] / round_trip_s)
    what = f"{line.round_trip_ms} ms: first batch of {batch_size} x {dim}, round trips"
    note = f"{median(ours):.1f} round trips, {median(ours) * round_trip_s:.2f} s; raw TCP {median(raw):.1f}"
    sides = (Series("cpstream", ours, "round trips"), Series("raw TCP", raw, "round trips", "limit"))
    if in_all is not None:
        yield Finding(what=f"{what} in all", values=ours, unit="", target=at_most(in_all), sides=sides, note=note)
    if more is not None:
        values = [one - other for one, other in zip(ours, raw, strict=True)]
        yield Finding(what=f"{what} more than raw TCP", values=values, unit="", target=at_most(more), sides=sides, note=note)


MEASUREMENTS = (
    Measurement("lines", measure_lines),
    Measurement("fast-line", measure_fast_line),
    Measurement("first-batch", measure_first_batch),
)
