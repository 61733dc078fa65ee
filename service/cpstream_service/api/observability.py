"""Request ids, the access log and the metrics: one ASGI middleware that looks at each message and copies no body."""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.contract.wire import ARROW_STREAM, CONTRACT_HEADER, REQUEST_ID_HEADER, contract_header
from cpstream_client.files import allocate

from ..snapshot.store import Split
from .client_wheel import find_wheel
from .negotiation import target_of

logger = logging.getLogger("cpstream.service")
access_logger = logging.getLogger("cpstream.access")

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: set by serve.py when there are several workers, so that any of them answers for all."""

_KINDS, _KIND_BYTES = ("counter", "histogram", "gauge_livesum"), 256 * 1024
"""Its files of each process, and room for a thousand numbers in each: labels are of a bounded set."""

MAX_LOGGED_CHARS = 1000
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WATCHED = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked for every few seconds, for ever: in the log only at level debug, or when they fail."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class SplitSamples(Collector):
    """The splits that are served now, as this worker knows. Those of before leave nothing behind, as they would in a Gauge."""

    def __init__(self) -> None:
        self.current: Callable[[], Iterable[Split]] = tuple

    def collect(self) -> Iterator[Metric]:
        told = "Samples of each split served, and its fingerprint: replicas that differ here serve different data."
        metric = GaugeMetricFamily("cpstream_split_samples", told, labels=["split", "fingerprint"])
        for split in self.current():
            metric.add_metric([split.name, split.fingerprint], split.info.num_samples)
        yield metric


class Metrics:
    """What /metrics shows, for one app. Routes are named by their template, so that no label grows with the requests."""

    def __init__(self) -> None:
        _make_room()
        self.registry = CollectorRegistry()
        self.requests = Counter("cpstream_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry)
        self.duration_s = Histogram(
            "cpstream_request_duration_seconds",
            "Time from a request's arrival to the last byte of its reply.",
            ["route"],
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
            registry=self.registry,
        )
        self.sent_bytes = Counter("cpstream_sent_bytes", "Bytes of reply bodies.", ["route"], registry=self.registry)
        self.samples = Counter("cpstream_samples", "Samples sent by batches and take.", ["split"], registry=self.registry)
        self.open_streams = Gauge(
            "cpstream_open_streams", "Arrow streams being sent now.", multiprocess_mode="livesum", registry=self.registry
        )
        self.splits = SplitSamples()
        self.registry.register(self.splits)
        if MULTIPROCESS_DIR not in os.environ:  # prometheus_client has none for several processes together
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

        self.of = lru_cache(maxsize=1024)(self._of)  # labels() takes longer than counting

    def _of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram, Counter]:
        """What counts such requests, their duration and the bytes of their replies."""
        return self.requests.labels(method, route, str(status)), self.duration_s.labels(route), self.sent_bytes.labels(route)

    def render(self) -> tuple[bytes, str]:
        """The text of /metrics and its media type; of all workers together where there are several."""
        directory = os.environ.get(MULTIPROCESS_DIR)
        if directory is None:
            registry = self.registry
        else:
            _forget_dead_workers(Path(directory))
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
            registry.register(self.splits)
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _make_room() -> None:
    """Have the space of this worker's numbers on the disk: prometheus_client maps sparse files, whose writer a full disk kills.

    Where there is none, this worker counts for itself.
    """
    directory = os.environ.get(MULTIPROCESS_DIR)
    if directory is None:
        return
    paths = [Path(directory, f"{kind}_{os.getpid()}.db") for kind in _KINDS]
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


class Observability:
    """ASGI middleware: gives every request an id, and says in log and metrics what became of it.

    Routes leave `split` and `samples` (how many the whole reply holds) in the request's state.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        wheel = find_wheel()
        self._contract = contract_header(wheel.name if wheel else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status, sent, announced, is_stream = 0, 0, None, False

        async def watch(message: Message) -> None:
            nonlocal status, sent, announced, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers[CONTRACT_HEADER] = self._contract
                announced = headers.get("content-length")
                is_stream = headers.get("content-type") == ARROW_STREAM
                if is_stream:
                    self.metrics.open_streams.inc()
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            if is_stream:
                self.metrics.open_streams.dec()
            complete = announced is None or scope["method"] == "HEAD" or sent >= int(announced)
            self._record(scope, state, status, sent, time.perf_counter() - began, complete)

    def _record(self, scope: Scope, state: dict[str, Any], status: int, sent: int, took_s: float, complete: bool) -> None:
        route = getattr(scope.get("route"), "path_format", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        requests, duration_s, sent_bytes = self.metrics.of(method, route, status)
        requests.inc()
        duration_s.observe(took_s)
        sent_bytes.inc(sent)
        if complete and status == 200 and "samples" in state and scope["method"] != "HEAD":
            self.metrics.samples.labels(state["split"]).inc(state["samples"])
        level = logging.DEBUG if route in _WATCHED and status < 400 else logging.INFO
        if not access_logger.isEnabledFor(level):
            return
        access_logger.log(
            level,
            "%s %s -> %d, %d bytes in %.3f s%s [%s]",
            scope["method"],
            target_of(scope)[:MAX_LOGGED_CHARS],  # as it was sent: a decoded path may hold a line break, and so forge a line
            status,
            sent,
            took_s,
            "" if complete else " (cut short)",
            state["request_id"],
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "query": scope["query_string"].decode("latin-1")[:MAX_LOGGED_CHARS],
                "route": route,
                "split": state.get("split"),
                "status": status,
                "bytes": sent,
                "seconds": round(took_s, 6),
                "complete": complete,
                "request_id": state["request_id"],
                "client": (scope.get("client") or ("",))[0],
            },
        )
