"""Many trainers at once: what they get together, how fairly, and whether the service still answers its orchestrator."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import numpy as np

from .bench import Bench, Measurement
from .findings import Finding, Series, at_least, at_most, ratio
from .processes import first_line, helper
from .raw_stream import BATCH, REQUEST_SAMPLES, RawStream
from .runner import quiet
from .service import Service

STREAMS = (1, 4, 16, 64)


def measure(bench: Bench) -> Iterator[Finding]:
    seconds = bench.options.pick(4, 1)
    counts = bench.options.pick(64, 4)
    streams = [count for count in STREAMS if count <= counts]
    totals: dict[int, list[float]] = {count: [] for count in streams}
    slowest: dict[int, list[float]] = {count: [] for count in streams}
    livez: dict[int, list[float]] = {count: [] for count in streams}
    read_at_once(bench.service, streams[-1], min(seconds, 1))  # warm-up
    for number in range(1, bench.options.rounds + 1):
        for count in streams:
            bench.progress(f"round {number} of {bench.options.rounds}, {count} streams")
            rates, latencies = read_at_once(bench.service, count, seconds)
            totals[count].append(sum(rates) / 1e9)
            slowest[count].append(min(rates) / (sum(rates) / count))
            livez[count].append(float(np.percentile(latencies, 99)) * 1e3)
    sides = {count: Series(f"{count} concurrent streams", totals[count], "GB/s") for count in streams}
    for count in streams:
        hard = count == 64
        if count > 1:
            what = f"{count} concurrent streams, total against one stream"
            yield ratio(what, sides[count], sides[1], at_least(0.8) if hard else None)
            what = f"{count} concurrent streams, slowest against mean"
            yield Finding(what=what, values=slowest[count], target=at_least(0.5) if hard else None)
        side = Series(f"/livez p99, {count} streams", livez[count], "ms")
        what = f"{count} concurrent streams, /livez p99 meanwhile"
        yield Finding(what=what, values=livez[count], unit="ms", target=at_most(100) if hard else None, sides=(side,))


def read_at_once(
    service: Service,
    count: int,
    seconds: float,
    *,
    orders: int = 64,
    limit: int | None = max(1, REQUEST_SAMPLES // BATCH),
    epoch_samples: int = 0,
) -> tuple[list[float], list[float]]:
    """Bytes a second of each of `count` streams read at once for a while, and the latencies of /livez meanwhile.

    orders: how many different ones they have. limit: batches a request; None, a whole epoch. epoch_samples: see RawStream.
    """
    received = [0] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count + 1)
    with ExitStack() as stack, quiet():
        streams = [
            stack.enter_context(closing(RawStream(service, number % orders, limit, epoch_samples))) for number in range(count)
        ]

        def read(number: int) -> None:
            start.wait()
            try:
                received[number] = streams[number].read_until(deadline)
            except OSError as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        host, port = service.address
        probe = stack.enter_context(helper("servers.livez", host, str(port), str(seconds)))
        first_line(probe)
        deadline = time.perf_counter() + seconds
        start.wait()
        for thread in threads:
            thread.join()
        latencies = json.loads(first_line(probe))
    if errors:
        raise errors[0]
    return [nbytes / seconds for nbytes in received], latencies


MEASUREMENTS = (Measurement("concurrency", measure),)
