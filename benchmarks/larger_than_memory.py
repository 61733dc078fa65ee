"""A split that exceeds the memory of the service: 4 GB under a limit of 1 GB, of a cgroup that it shares with the other side.

Each side reads for some seconds, not a whole epoch, because the slowest one would take hours; so samples/s are compared. Before
each one everything that the last one read is taken out of memory.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpstream_client.torch import StreamingEmbeddingsDataset

from .bench import Bench, Measurement
from .cgroups import Limited, limited
from .data import SPLIT, make_data
from .findings import Finding, Series, Skipped, at_least, ratio
from .loaders import BATCH
from .processes import first_line, helper
from .runner import quiet
from .service import Service, serving
from .startup import open_s

SPLIT_BYTES = 4_300_000_000
LIMIT_BYTES = 1024**3
_NEEDED = 3
"""Times the split's size that making it takes of disk, and of memory."""


def measure(bench: Bench) -> Iterator[Finding]:
    split_bytes = bench.options.pick(SPLIT_BYTES, 20_000_000)
    samples = split_bytes // (bench.options.dim * 4)
    with limited(bench.options.pick(LIMIT_BYTES, LIMIT_BYTES // 4)) as cgroup, bench.scratch("large") as folder:
        _require_room(folder, split_bytes)
        bench.progress(f"making {samples:,} samples")
        source = make_data(folder / "source", samples, bench.options.dim).folder
        bench.progress(f"writing the snapshot of {samples:,} samples")
        open_s(source, folder / "snapshots")  # with all memory
        (embeddings,) = (folder / "snapshots").glob(f"*/{SPLIT}/embeddings.npy")
        _forget(embeddings)
        bench.progress("starting the service under the limit")
        with serving(source, folder / "snapshots", cgroup=cgroup.path) as service:
            yield from _compare(bench, cgroup, service, embeddings)


def _compare(bench: Bench, cgroup: Limited, service: Service, embeddings: Path) -> Iterator[Finding]:
    seconds = bench.options.pick(6, 1)
    rates: dict[str, list[float]] = {"plain np.take": [], "uniform": [], "blocks": []}
    for number in bench.starts("shuffles under a memory limit"):
        for name, values in rates.items():
            cgroup.drop_caches()
            if name == "plain np.take":
                rate = _plain(embeddings, seconds, number, cgroup)
            else:
                rate = _streamed(service, name, seconds, number)
            if number:
                values.append(rate)
    plain, uniform, blocks = (
        Series(f"{name}, split 4 times the memory", values, "samples/s", "limit" if name.startswith("plain") else "ours")
        for name, values in rates.items()
    )
    yield ratio("4 GB split under 1 GB: uniform shuffle against plain np.take on the same map", uniform, plain, at_least(50))
    yield ratio("4 GB split under 1 GB: shuffle blocks against uniform", blocks, uniform, at_least(3))


def _plain(embeddings: Path, seconds: float, seed: int, cgroup: Limited) -> float:
    with helper("servers.plain_take", str(embeddings), str(seconds), str(seed), cgroup=cgroup.path) as process:
        return float(first_line(process))


def _streamed(service: Service, shuffle: str, seconds: float, epoch: int) -> float:
    """Samples a second from the first batch on."""
    order: Any = "blocks" if shuffle == "blocks" else True
    dataset = StreamingEmbeddingsDataset(service.url, SPLIT, batch_size=BATCH, shuffle=order, cache=None)
    dataset.set_epoch(epoch)
    batches = iter(dataset)
    next(batches)
    count = 0
    with quiet():
        started = time.perf_counter()
        for _, cps in batches:
            count += len(cps)
            if time.perf_counter() - started > seconds:
                break
        took = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return count / took


def _require_room(folder: Path, split_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for name, there in (("disk", free), ("memory", available)):
        if there < _NEEDED * split_bytes:
            raise Skipped(f"making the split takes {_NEEDED * split_bytes / 1e9:.0f} GB of {name}; there are {there / 1e9:.0f}")


def _forget(path: Path) -> None:
    """Take a file out of the page cache, where it is charged to whoever wrote it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


MEASUREMENTS = (Measurement("larger-than-memory", measure),)
