"""How each cost grows with the number of samples. A small dimension, so that a million of them fits anywhere."""

import time
from collections.abc import Iterator

from cpstream_client.contract.randperm import randperm
from cpstream_client.torch import StreamingEmbeddingsDataset

from .bench import Bench, Measurement
from .data import SPLIT, make_data
from .findings import Finding, Series
from .runner import quiet
from .service import serving
from .startup import open_s

DIM = 64
SIZES = (10_000, 100_000, 1_000_000)
COSTS = ("first load", "warm open", "order of an epoch (randperm)", "new epoch, to its first batch")


def measure(bench: Bench) -> Iterator[Finding]:
    sizes = [size for size in SIZES if size <= bench.options.pick(SIZES[-1], SIZES[0])]
    costs: dict[int, dict[str, list[float]]] = {}
    for size in sizes:
        with bench.scratch(f"scaling-{size}") as folder:
            bench.progress(f"making {size:,} samples")
            source = make_data(folder / "source", size, DIM).folder
            cost = costs[size] = {name: [] for name in COSTS}
            for number in bench.starts(f"loads of {size:,} samples"):
                snapshots = folder / f"snapshots-{number}"
                first, warm = open_s(source, snapshots), open_s(source, snapshots)
                if number:
                    cost["first load"].append(first)
                    cost["warm open"].append(warm)
            with serving(source, snapshots) as service:
                first_batch_s(service.url, 0)  # warm-up
                for number in range(1, bench.options.rounds + 1):
                    cost["order of an epoch (randperm)"].append(_order_s(size, number))
                    cost["new epoch, to its first batch"].append(first_batch_s(service.url, number))
    smallest = sizes[0]
    for name in COSTS:
        for size in sizes:
            values = [seconds * 1e3 for seconds in costs[size][name]]
            growth = (
                ""
                if size == smallest
                else f"x{_median(costs[size][name]) / _median(costs[smallest][name]):.1f} the time of {smallest:,}"
            )
            side = Series(f"{name}, {size:,}", values, "ms")
            yield Finding(what=f"{name}, {size:,} samples x {DIM}", values=values, unit="ms", sides=(side,), note=growth)


def _order_s(size: int, seed: int) -> float:
    with quiet():
        started = time.perf_counter()
        randperm(size, seed)
        return time.perf_counter() - started


def first_batch_s(url: str, number: int) -> float:
    """From asking for an epoch whose order nobody has asked for before, to its first batch."""
    dataset = StreamingEmbeddingsDataset(url, SPLIT, batch_size=256, shuffle=True, seed=1000 * number, cache=None)
    len(dataset)  # fetches the metadata
    with quiet():
        started = time.perf_counter()
        batches = iter(dataset)
        next(batches)
        took = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return took


def _median(values: list[float]) -> float:
    return Series("", values, "").median


MEASUREMENTS = (Measurement("scaling", measure),)
