"""What /metrics shows: counters, gauges and histograms by Prometheus' conventions, of all worker processes together."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    multiprocess,
    values,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cpstream_client.files import allocate

from ..batches.account import Account
from ..snapshot.store import Split
from ..versions.state import State

logger = logging.getLogger("cpstream.service")

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: set by serve.py when there are several workers, so that any of them answers for all."""

_KINDS, _KIND_BYTES = ("counter", "histogram", "gauge_livesum"), 512 * 1024
"""Its files of each process, and room for 1,500 numbers in each: labels are of a bounded set."""

_REQUEST_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)
_PART_S = (0.0001, 0.0005, 0.002, 0.01, 0.05, 0.2, 1, 5, 20, 120)
"""Bounds of histograms: a request for a few samples takes a millisecond, a stream to a slow trainer minutes."""

MAX_TOKENS = 64
"""Names of tokens that are told apart: a file of tokens may be changed again and again under a running service."""
OTHER_TOKENS = "(others)"


class Held(Collector):
    """The data that is held now, as this worker knows it: what was served before leaves nothing behind, as in a Gauge it would.

    splits: those served; versions: how many are held; state: what the keeper of the versions last told; is_stale: whether the
    current one may be older than its source.
    """

    def __init__(self) -> None:
        self.splits: Callable[[], Iterable[Split]] = tuple
        self.versions: Callable[[], int] = lambda: 1
        self.state: Callable[[], State] = State
        self.is_stale: Callable[[], bool] = lambda: False

    def collect(self) -> Iterator[Metric]:
        told = "Samples of each split served, and its fingerprint: replicas that differ here serve different data."
        samples = GaugeMetricFamily("cpstream_split_samples", told, labels=["split", "fingerprint"])
        for split in self.splits():
            samples.add_metric([split.name, split.fingerprint], split.info.num_samples)
        yield samples
        yield GaugeMetricFamily("cpstream_versions", "Versions of the data that are held.", self.versions())
        told = "Whether the data served may be older than its source (1), since that could not be read."
        yield GaugeMetricFamily("cpstream_stale", told, int(self.is_stale()))
        state = self.state()
        loads = CounterMetricFamily(
            "cpstream_loads", "Loads of the data that have ended, that at the start included, by their outcome.", labels=["outcome"]
        )
        for outcome in ("succeeded", "unchanged", "failed"):
            loads.add_metric([outcome], getattr(state, f"num_{outcome}"))
        yield loads
        if state.load_s is not None:
            told = "Time that loading the current version took, alignment included."
            yield GaugeMetricFamily("cpstream_load_seconds", told, state.load_s)


class Metrics:
    """Of one app. Routes are named by their template and tokens by their names, so that no label grows with the requests."""

    def __init__(self) -> None:
        _make_room()
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("cpstream_requests", "Requests answered.", ["method", "route", "status"], registry=registry)
        self.refusals = Counter(
            "cpstream_refusals", "Requests answered with a problem, by its code.", ["code", "token"], registry=registry
        )
        self.duration_s = Histogram(
            "cpstream_request_duration_seconds",
            "Time from a request's arrival to the last byte of its reply.",
            ["route"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        self.first_byte_s = Histogram(
            "cpstream_time_to_first_byte_seconds",
            "Time from a request's arrival to the first byte of its reply's body.",
            ["route"],
            buckets=_PART_S,
            registry=registry,
        )
        self.sent_bytes = Counter("cpstream_sent_bytes", "Bytes of reply bodies.", ["route", "token"], registry=registry)
        self.samples = Counter("cpstream_samples", "Samples sent in whole batches.", ["split", "token"], registry=registry)
        self.batches = Counter("cpstream_batches", "Record batches sent whole.", ["split", "token"], registry=registry)
        self.open_streams = Gauge(
            "cpstream_open_streams", "Arrow streams being sent now.", multiprocess_mode="livesum", registry=registry
        )
        self.gather_s = self._part("gather", "Time that gathering the chunks of an Arrow stream took.")
        self.wait_s = self._part("wait", "Time that the chunks of an Arrow stream waited for their turns, beside other requests.")
        self.send_s = self._part("send", "Time in which the network or the client took the chunks of an Arrow stream.")
        self.turn_waits = Counter("cpstream_turn_waits", "Chunks that found another client's turn, and waited.", registry=registry)
        self.held = Held()
        registry.register(self.held)
        if MULTIPROCESS_DIR not in os.environ:  # prometheus_client has none for several processes together
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

        # labels() takes longer than counting
        self._of_request = lru_cache(maxsize=1024)(self._children_of_request)
        self._of_bytes = lru_cache(maxsize=1024)(self._child_of_bytes)
        self._of_split = lru_cache(maxsize=1024)(self._children_of_split)
        self._tokens: set[str] = set()

    def _part(self, name: str, text: str) -> Histogram:
        return Histogram(f"cpstream_stream_{name}_seconds", text, buckets=_PART_S, registry=self.registry)

    def _children_of_request(self, method: str, route: str, status: int) -> tuple[Counter, Histogram, Histogram]:
        return self.requests.labels(method, route, str(status)), self.duration_s.labels(route), self.first_byte_s.labels(route)

    def _child_of_bytes(self, route: str, token: str) -> Counter:
        return self.sent_bytes.labels(route, token)

    def _children_of_split(self, split: str, token: str) -> tuple[Counter, Counter]:
        return self.samples.labels(split, token), self.batches.labels(split, token)

    def answered(self, method: str, route: str, status: int, *, took_s: float, first_byte_s: float | None) -> None:
        """A request is over. first_byte_s: None where the reply has no body."""
        requests, duration, first_byte = self._of_request(method, route, status)
        requests.inc()
        duration.observe(took_s)
        if first_byte_s is not None:
            first_byte.observe(first_byte_s)

    def sent_to(self, route: str, token: str, nbytes: int) -> None:
        """So many bytes of a reply's body have been sent."""
        self._of_bytes(route, self._told(token)).inc(nbytes)

    def refused(self, code: str, token: str) -> None:
        """The reply was a problem of this code."""
        self.refusals.labels(code, self._told(token)).inc()

    def sent(self, split: str, token: str, samples: int, batches: int) -> None:
        """So much of a split has been sent to a client."""
        of_samples, of_batches = self._of_split(split, self._told(token))
        of_samples.inc(samples)
        of_batches.inc(batches)

    def streamed(self, account: Account) -> None:
        """An Arrow stream is over."""
        self.gather_s.observe(account.gather_s)
        self.wait_s.observe(account.wait_s)
        self.send_s.observe(account.send_s)
        if account.waits:
            self.turn_waits.inc(account.waits)

    def render(self) -> tuple[bytes, str]:
        """The text of /metrics and its media type; of all workers together where there are several."""
        of_all = self._of_all_workers()
        if of_all is not None:
            of_all.register(self.held)
        return generate_latest(of_all or self.registry), CONTENT_TYPE_LATEST

    def traffic(self) -> Iterator[Metric]:
        """What is being sent and refused, and has been since the start; of all workers together. Reads files of theirs."""
        of_all = self._of_all_workers()
        if of_all is not None:
            yield from of_all.collect()
        else:
            for metric in (self.open_streams, self.samples, self.sent_bytes, self.refusals):
                yield from metric.collect()

    @property
    def is_of_all_workers(self) -> bool:
        """Not where there are several, and this one counts for itself: _make_room found none."""
        return MULTIPROCESS_DIR in os.environ

    @staticmethod
    def _of_all_workers() -> CollectorRegistry | None:
        """None where there is one worker, and it knows all."""
        directory = os.environ.get(MULTIPROCESS_DIR)
        if directory is None:
            return None
        _forget_dead_workers(Path(directory))
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
        return registry

    def _told(self, token: str) -> str:
        if token in self._tokens:
            return token
        if len(self._tokens) >= MAX_TOKENS:
            return OTHER_TOKENS
        self._tokens.add(token)
        return token


def _make_room() -> None:
    """Have the space of this worker's numbers on the disk: prometheus_client maps sparse files, whose writer a full disk kills.

    Where there is none, this worker counts for itself.
    """
    directory = os.environ.get(MULTIPROCESS_DIR)
    if directory is None:
        return
    paths = [Path(directory, f"{kind}_{os.getpid()}.db") for kind in _KINDS]
    for path in Path(directory).glob(f"gauge_live*_{os.getpid()}.db"):  # of a dead worker that had this process id
        path.unlink()
    try:
        for path in paths:
            if not path.exists():
                allocate(path, _KIND_BYTES, "free space in the temporary folder (TMPDIR)")
    except OSError as error:
        logger.warning("/metrics of this worker counts its own requests alone: %s: %s", error.filename, error.strerror)
        for path in paths:  # others could not read what is not whole
            path.unlink(missing_ok=True)
        values.ValueClass = values.MutexValue  # as without several processes
        del os.environ[MULTIPROCESS_DIR]


def _forget_dead_workers(directory: Path) -> None:
    for path in directory.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
