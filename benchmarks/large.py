"""A split as large as one machine serves from memory: 10,000,000 x 256. Each figure once a round; the source is made by pyarrow.

It takes twice its size on disk, and as much memory as lets the snapshot stay there; where there is less, it is skipped.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cpstream_client import Client
from cpstream_client.contract.randperm import randperm
from cpstream_client.epochs.budget import free_bytes
from cpstream_client.torch import StreamingEmbeddingsDataset

from .bench import Bench, Measurement
from .concurrency import read_at_once
from .data import SPLIT
from .findings import Finding, Series, Skipped
from .memory import settled
from .runner import quiet
from .scaling import first_batch_s
from .service import Service, serving

DIM = 256
WORLD_SIZES = (1, 8, 64)
STREAMS = (1, 4, 64)
_SHARD_ROWS = 250_000
_STEPS = 50
_REQUEST_STEPS = 7_000
"""Of a reply of nearly 2 GiB, the most that a service sends by default."""
_FIRST_START_S = 1800.0


def measure(bench: Bench) -> Iterator[Finding]:
    n = bench.options.large
    nbytes = n * DIM * 4
    if shutil.disk_usage(bench.folder).free < 2.5 * nbytes or (free_bytes() or 0) < 1.5 * nbytes:
        raise Skipped(f"{n:,} x {DIM} take {2.5 * nbytes / 1e9:.0f} GB of disk and {1.5 * nbytes / 1e9:.0f} GB of memory")
    found: dict[tuple[str, str], list[float]] = {}

    def note(what: str, unit: str, value: float) -> None:
        found.setdefault((what, unit), []).append(value)

    with bench.scratch("large") as folder:
        bench.progress(f"making {n:,} samples")
        make_source(folder / "source", n)
        options = ("--source-type", "parquet", "--cps-from", "source")
        bench.progress("first start")
        with serving(folder / "source", folder / "snapshots", *options, timeout_s=_FIRST_START_S) as service:
            note("first start to ready", "s", service.start_s)
        with serving(folder / "source", folder / "snapshots", *options) as service:
            note("warm start to ready", "s", service.start_s)
            first_batch_s(service.url, 0)  # warm-up
            for number in range(1, bench.options.rounds + 1):
                bench.progress(f"round {number} of {bench.options.rounds}")
                _round(bench, service, n, number, note)
            note("service's own memory", "MB", settled(service.pid) / 1e6)
        with serving(folder / "source", folder / "snapshots", *options, "--workers", "2") as service:
            for number in range(1, bench.options.rounds + 1):
                bench.progress(f"two workers, round {number} of {bench.options.rounds}")
                _streams(bench, service, n, 4, "4 streams at once, two workers", note)
    for (what, unit), values in found.items():
        what = f"{n:,} x {DIM}: {what}"
        yield Finding(what=what, values=values, unit=unit, sides=(Series(what, values, unit),))


def _round(bench: Bench, service: Service, n: int, number: int, note: Callable[[str, str, float], None]) -> None:
    note("order of an epoch", "s", _took(lambda: randperm(n, number)))
    generator = torch.Generator().manual_seed(number)
    note("torch.randperm", "s", _took(lambda: torch.randperm(n, generator=generator)))
    note("new epoch, to its first batch", "s", first_batch_s(service.url, number))
    note("streaming, batch 256", "samples/s", _speed(service, number, bench.options.pick(4, 1)))
    with Client(service.url) as client:
        client.splits()
        note("100 rows near the end", "ms", 1e3 * _took(lambda: client.rows(SPLIT, n - 200)))
    for count in STREAMS:
        _streams(bench, service, n, count, f"{count} streams at once" if count > 1 else "one stream", note)
    for world_size in WORLD_SIZES:
        note(
            f"a step of one of {world_size} ranks" if world_size > 1 else "a step", "us", 1e6 * _step_s(service, number, world_size)
        )


def _streams(bench: Bench, service: Service, n: int, count: int, what: str, note: Callable[[str, str, float], None]) -> None:
    """Of one order, which is known, as ranks of one job have it."""
    of_one_epoch = {"orders": 1, "limit": _REQUEST_STEPS, "epoch_samples": n}
    read_at_once(service, count, 1, **of_one_epoch)  # makes its order, in each worker
    rates, latencies = read_at_once(service, count, bench.options.pick(4, 1), **of_one_epoch)
    note(what, "GB/s", sum(rates) / 1e9)
    note(f"{what}, /livez p99", "ms", 1e3 * float(np.percentile(latencies, 99)))


def make_source(folder: Path, samples: int) -> None:
    """Shards of Parquet with the rate beside the embedding."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    base = rng.standard_normal((min(samples, _SHARD_ROWS), DIM), dtype=np.float32)
    for shard, low in enumerate(range(0, samples, _SHARD_ROWS)):
        rows = min(_SHARD_ROWS, samples - low)
        embeddings = (base[:rows] * np.float32(1 + low / samples)).reshape(-1)
        columns: dict[str, Any] = {
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings), DIM),
            "file_path": [f"audio/{i:08d}.wav" for i in range(low, low + rows)],
            "cps": rng.uniform(5, 25, rows).astype(np.float32),
            "split": [SPLIT] * rows,
        }
        pq.write_table(pa.table(columns), folder / f"{shard:04d}.parquet", compression="none", use_dictionary=["split"])


def _speed(service: Service, number: int, seconds: float) -> float:
    """Samples a second of an epoch that is under way."""
    dataset = StreamingEmbeddingsDataset(service.url, SPLIT, shuffle=True, seed=number, cache=None)
    batches = iter(dataset)
    next(batches)
    count, started = 0, time.perf_counter()
    with quiet():
        for _, cps in batches:
            count += len(cps)
            if time.perf_counter() - started > seconds:
                break
        took = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return count / took


def _step_s(service: Service, number: int, world_size: int) -> float:
    """Of the last rank of so many, in the midst of an epoch whose order is known."""
    with Client(service.url) as client:
        info = client.split(SPLIT)
        options: dict[str, Any] = {"shuffle": "uniform", "seed": number, "world_size": world_size, "rank": world_size - 1}
        start = info.num_samples // 2
        sum(1 for _ in client.batches(SPLIT, info=info, limit=1, start=start, **options))
        steps = min(_STEPS, -(-(info.num_samples - start) // (256 * world_size)))
        return _took(lambda: sum(1 for _ in client.batches(SPLIT, info=info, limit=steps, start=start, **options))) / steps


def _took(work: Callable[[], object]) -> float:
    with quiet():
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


MEASUREMENTS = (Measurement("large", measure),)
