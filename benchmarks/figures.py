"""What the page shows: how long its statistics take, alone and beside a stream, and how soon it and a sample's neighbours answer.

The statistics are computed anew in each round, by a service with a snapshot folder of its own, from the moment when it is ready.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any

from .bench import Bench, Measurement
from .data import SPLIT
from .findings import Finding, Series, at_least, at_most
from .memory import anonymous_bytes
from .raw_stream import RawStream, warm
from .runner import quiet
from .service import Service, serving

_TIMEOUT_S = 900.0
_POLL_S = 0.1
_STREAM_S = 1.0
_QUERIES = 20
_PAGES = ("/", f"/page/splits/{SPLIT}", f"/page/splits/{SPLIT}/rows?sort=cps", f"/page/splits/{SPLIT}/samples/0")


def measure_statistics(bench: Bench) -> Iterator[Finding]:
    idle: list[float] = []
    beside: list[float] = []
    memory: list[float] = []
    shares: list[float] = []
    for number in bench.starts("statistics"):
        with bench.scratch("figures") as folder, serving(bench.data.folder, folder) as service:
            took, peak, _ = _computed(service, _wait)
        with bench.scratch("figures") as folder, serving(bench.data.folder, folder) as service:
            warm(service, folder)
            alone = [_speed(service) for _ in range(bench.options.pick(4, 1))]
            took_beside, _, read = _computed(service, _speed)
        if number:
            idle.append(took)
            beside.append(took_beside)
            memory.append(peak / 1e6)
            shares.append(mean(read) / mean(alone))
    yield _one("statistics, alone", idle, "s", at_most(60))
    yield _one("statistics, beside a stream", beside, "s", at_most(240))
    yield _one("statistics, memory of their process at most", memory, "MB", at_most(500))
    side = (Series("stream beside statistics, of its speed alone", shares, "x"),)
    yield Finding(what="speed of a stream beside statistics, against alone", values=shares, target=at_least(0.7), sides=side)


def measure_answers(bench: Bench) -> Iterator[Finding]:
    """Of a service that has its statistics. Each query is of another sample, and each page is asked for anew."""
    service = bench.service
    _computed(service, _wait)
    neighbours: list[float] = []
    pages: dict[str, list[float]] = {path: [] for path in _PAGES}
    for number in range(bench.options.rounds + 1):
        took = [_answer_s(service, f"/v1/splits/{SPLIT}/neighbours?index={_sample(bench, i)}&k=10") for i in range(_QUERIES)]
        neighbours += [1e3 * max(took)] if number else []
        for path in _PAGES:
            took_s = _answer_s(service, path, accept="text/html")
            pages[path] += [1e3 * took_s] if number else []
    yield _one(f"the slowest of {_QUERIES} searches for neighbours", neighbours, "ms", at_most(300))
    for path, values in pages.items():
        yield _one(f"page {path}", values, "ms", at_most(2000))


def _sample(bench: Bench, query: int) -> int:
    return query * (len(bench.data) // _QUERIES)


def _one(what: str, values: list[float], unit: str, target: Any) -> Finding:
    return Finding(what=what, values=values, unit=unit, target=target, sides=(Series(what, values, unit),))


def _computed(service: Service, meanwhile: Callable[[Service], float]) -> tuple[float, int, list[float]]:
    """Seconds until the statistics are there, the most memory that their process had of its own, and what `meanwhile` gave."""
    peak, given, started = 0, [], time.perf_counter()
    while True:
        status, body = _get(service, f"/v1/splits/{SPLIT}/statistics")
        if status == 200:
            json.loads(body)
            return time.perf_counter() - started, peak, given
        if status != 202 or time.perf_counter() - started > _TIMEOUT_S:
            raise RuntimeError(f"statistics were answered {status}: {body[:300]!r}")
        given.append(meanwhile(service))
        peak = max(peak, sum(anonymous_bytes(pid) for pid in _children(service.pid) if _computes(pid)))


def _wait(_: Service) -> float:
    time.sleep(_POLL_S)
    return _POLL_S


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from _children(child)


def _computes(pid: int) -> bool:
    try:
        return b"statistics" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _speed(service: Service) -> float:
    """Bytes a second of a stream that is read for a second."""
    with closing(RawStream(service, 1, None)) as stream:
        started = time.perf_counter()
        return stream.read_until(started + _STREAM_S) / (time.perf_counter() - started)


def _answer_s(service: Service, path: str, accept: str = "application/json") -> float:
    with quiet():
        started = time.perf_counter()
        status, body = _get(service, path, accept)
        took = time.perf_counter() - started
    if status != 200:
        raise RuntimeError(f"{path} was answered {status}: {body[:300]!r}")
    return took


def _get(service: Service, path: str, accept: str = "application/json") -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(*service.address, timeout=_TIMEOUT_S)) as connection:
        connection.request("GET", path, headers={"Accept": accept})
        reply = connection.getresponse()
        return reply.status, reply.read()


MEASUREMENTS = (Measurement("statistics", measure_statistics), Measurement("page", measure_answers))
