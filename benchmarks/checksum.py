"""`python -m benchmarks.checksum`: what the checksum of each batch costs, on both sides together, as a share of the throughput.

Two services of the same data, one as it is and one that writes zeros for checksums, are read in turn by a client that verifies them
or does not. The rounds alternate, so that whatever else the machine does hits both alike.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from crc32c import crc32c

from cpstream_client import BatchQuery, Client
from cpstream_client.stream import messages
from cpstream_service.batches import frames
from cpstream_service.batches import gather as batches
from cpstream_service.serve import serve
from cpstream_service.settings import DataSettings, ServeSettings

from .data import SPLIT, make_data
from .processes import running, wait_for

PARTS = 5


def _nothing(data: object, checksum: int = 0) -> int:
    """The checksum that is not computed."""
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", choices=["with", "without"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        if given.serve == "without":
            for module in frames, batches:
                module.crc32c = _nothing
        data = DataSettings(source_path=given.folder / "data", snapshot_dir=given.folder / "snapshots")
        return serve(data, ServeSettings(host="127.0.0.1", port=0, log_format="text"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder / "data", given.samples, given.dim)
        with _service(folder, "with") as plain, _service(folder, "without") as bare:
            return _compare({"with": plain, "without": bare}, given)


def _compare(services: dict[str, tuple[str, int]], given: argparse.Namespace) -> int:
    gigabytes = given.samples * (given.dim + 3) * 4 / 1e9
    wall_s: dict[str, list[float]] = {side: [] for side in services}
    cpu_s: dict[str, list[float]] = {side: [] for side in services}
    for turn in range(given.rounds + 1):
        for side in ("with", "without") if turn % 2 else ("without", "with"):
            messages.crc32c = crc32c if side == "with" else _nothing
            url, pid = services[side]
            cpu_before = time.process_time() + _cpu_s(pid)
            took = _epoch(url, given.batch_size, turn)
            if turn:  # the first round warms up
                wall_s[side] += took
                cpu_s[side].append(time.process_time() + _cpu_s(pid) - cpu_before)
    for side in services:
        speed, cpu = gigabytes / PARTS / np.array(wall_s[side]), np.array(cpu_s[side]) / gigabytes
        print(
            f"{side:>8} checksum: {np.median(speed):.2f} GB/s, best tenth {np.quantile(speed, 0.9):.2f}; "
            f"{np.median(cpu):.3f} s of CPU a GB, best {cpu.min():.3f} ({given.rounds} epochs, {PARTS} parts each)"
        )
    for what, times, best in (("throughput", wall_s, 0.1), ("CPU time of both sides", cpu_s, 0.0)):
        middle, least = (np.quantile(times["with"], q) / np.quantile(times["without"], q) for q in (0.5, best))
        print(f"{what}: time with / without {middle:.3f} (medians), {least:.3f} (best)")
    return 0


def _cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _epoch(url: str, batch_size: int, epoch: int) -> list[float]:
    """Seconds that each part of an epoch took: what else the machine does then hits few of them."""
    with Client(url) as client:
        query = BatchQuery(batch_size=batch_size, shuffle="uniform", epoch=epoch)
        info = client.split(SPLIT)
        took: list[float] = []
        rows, began = 0, time.perf_counter()
        for batch in client.batches(SPLIT, query, info=info):
            rows += batch.num_rows
            if rows * PARTS >= info.num_samples * (len(took) + 1):
                now = time.perf_counter()
                took.append(now - began)
                began = now
    assert rows == info.num_samples
    return took


@contextmanager
def _service(folder: Path, side: str) -> Iterator[tuple[str, int]]:
    """Its URL and process id."""
    log = folder / f"{side}.log"
    with running([sys.executable, "-m", "benchmarks.checksum", "--serve", side, "--folder", str(folder)], log) as process:

        def url() -> str | None:
            _, found, rest = log.read_text().partition("serving at ")
            return rest.partition(",")[0].split()[0] if found and "\n" in rest else None

        yield wait_for(url, process, log), process.pid


if __name__ == "__main__":
    sys.exit(main())
