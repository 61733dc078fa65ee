"""What an open stream costs the service in memory of its own: anonymous pages, not the page cache of the snapshot."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from .bench import Bench, Measurement
from .findings import Finding, Series, at_most
from .raw_stream import RawStream
from .service import Service, serving

COUNTS = (16, 64)
_SETTLED_BYTES = 256 * 1024


def measure(bench: Bench) -> Iterator[Finding]:
    """Streams that were begun and then read no further, each of another order; a fresh service every round."""
    values: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number in bench.starts("paused streams"):
        with serving(bench.data.folder, bench.folder / "snapshots-memory") as service, ExitStack() as stack:
            _read_some(service)
            before = anonymous_bytes(service.pid)
            opened = 0
            for count in COUNTS:
                while opened < count:
                    stream = stack.enter_context(closing(RawStream(service, 1000 + opened, None)))
                    stream.ask()
                    stream.pause()
                    opened += 1
                if number:
                    values[count].append((settled(service.pid) - before) / count / 1e6)
    for count in COUNTS:
        side = Series(f"service, {count} paused streams", values[count], "MB/stream")
        what = f"service's own memory per open stream, {count} streams"
        yield Finding(what=what, values=values[count], unit="MB", target=at_most(8), sides=(side,))


def anonymous_bytes(pid: int) -> int:
    """Proportional set size of the pages that no file holds, of the process."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    return fields.get("Pss_Anon", fields["Anonymous"])


def _read_some(service: Service) -> None:
    """One stream first, so that what the service sets up once does not count."""
    with closing(RawStream(service, 1, None)) as stream:
        stream.read_until(time.perf_counter() + 0.5)
    settled(service.pid)


def settled(pid: int) -> int:
    """The memory once it no longer changes: buffers fill until the sockets take no more."""
    last, deadline = -_SETTLED_BYTES * 2, time.monotonic() + 10
    while time.monotonic() < deadline:
        now = anonymous_bytes(pid)
        if abs(now - last) < _SETTLED_BYTES:
            return now
        last = now
        time.sleep(0.2)
    return last


MEASUREMENTS = (Measurement("memory-per-stream", measure),)
