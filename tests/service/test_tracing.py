"""Traces, as a receiver of OTLP gets them: of the service, of the client's requests, and of both as one."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import environment, serve
from conftest import Server, poll, serving
from faultproxy import FaultProxy
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cpstream_client import Client, Retry
from cpstream_client.torch import RemoteEmbeddingsDataset, StreamingEmbeddingsDataset

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"


@dataclass
class Receiver:
    """An OTLP/HTTP endpoint. spans: all that came, in the protocol's own form; resources: their attributes by name."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(await request.body()).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response(b"", media_type="application/x-protobuf")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with serving(Starlette(routes=[Route("/v1/traces", made.take, methods=["POST"])])) as url:
        made.url = url
        yield made


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value or each.value.bool_value for each in span.attributes}


def test_a_stream_is_one_span_that_ends_with_its_body(receiver: Receiver, large: Path, tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serve(tmp_path, "--log-format", "json", source=large, **variables) as service:
        headers = {"traceparent": PARENT, "X-Request-ID": "step-7"}
        path = f"{service.url}/v1/splits/train/batches"
        with httpx.stream("GET", path, params={"batch_size": 100}, headers=headers) as reply:
            pieces = reply.iter_raw()
            next(pieces)
            middle_ns = time.time_ns()
            nbytes = sum(len(piece) for piece in pieces)
        assert nbytes > 20_000_000
        with httpx.stream("GET", path, headers={"X-Request-ID": "left"}) as reply:
            next(reply.iter_raw())
        httpx.get(f"{service.url}/v1/splits/nowhere")
        poll(lambda: len(receiver.spans) >= 3)
        assert service.stop() == 0
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    stream, left, refused = sorted(receiver.spans, key=lambda span: span.start_time_unix_nano)
    assert (stream.trace_id.hex(), stream.parent_span_id.hex()) == (f"{TRACE:032x}", f"{SPAN:016x}")
    assert stream.name == "GET /v1/splits/{split}/batches"
    assert stream.end_time_unix_nano > middle_ns
    told = attributes(stream)
    assert (told["cpstream.request_id"], told["cpstream.split"], told["cpstream.samples"]) == ("step-7", "train", 6000)
    assert attributes(left)["cpstream.cut_short"] is True
    assert attributes(refused)["cpstream.code"] == "unknown-split"
    assert {each["service.name"] for each in receiver.resources} == {"cpstream"}
    logged = {line["request_id"]: line for line in lines if "request_id" in line}
    assert logged["step-7"]["trace_id"] == f"{TRACE:032x}"
    assert logged["left"]["trace_id"] == left.trace_id.hex()
    assert (logged["step-7"]["complete"], logged["left"]["complete"]) == (True, False)
    assert "(cut short)" in logged["left"]["message"]


def test_the_last_spans_of_each_worker_are_sent_at_the_end(receiver: Receiver, tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.url}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with serve(tmp_path, "--workers", "2", OTEL_SERVICE_NAME="data-7", **variables) as service:
        for _ in range(20):
            httpx.get(f"{service.url}/v1/splits")
        assert receiver.spans == []
        assert service.stop() == 0
    assert len(receiver.spans) == 20  # and none of what only asks whether the service lives
    assert {each["service.name"] for each in receiver.resources} == {"data-7"}


def test_a_receiver_that_is_away_delays_neither_requests_nor_the_end(tmp_path: Path) -> None:
    with serve(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="600000") as service:
        assert httpx.get(f"{service.url}/v1/splits").status_code == 200
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()


WITHOUT = """
import sys
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.load import load
from cpstream_service.settings import DataSettings
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if "missing" in sys.argv:
    sys.meta_path.insert(0, Missing())
import logging
logging.basicConfig(level="WARNING", format="%(message)s")
create_app(load(DataSettings(source_path=sys.argv[1], snapshot_dir=sys.argv[2])).snapshot, ServeSettings())
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, ""),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "missing": "1"},
            "no traces: missing opentelemetry.sdk; run: pip install",
        ),
    ],
)
def test_nothing_of_it_is_imported_unless_asked_for(demo: Any, variables: dict[str, str], said: str) -> None:
    more = ["missing"] if variables.pop("missing", None) else []
    command = [sys.executable, "-c", WITHOUT, str(demo.source_path), str(demo.snapshot_dir), *more]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]" or said
    assert said in done.stderr
    assert said or not done.stderr


@pytest.fixture
def traced() -> Iterator[None]:
    with trace.use_span(NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(1)))):
        yield


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in list(caplog.records) if record.name == "cpstream.access"]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("way", ["client", "streaming", "random access", "lanes", "httpx"])
def test_the_clients_requests_belong_to_the_trace_that_is_active(
    way: str, server: Server, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    if way == "lanes":
        request.getfixturevalue("long_path")
    with caplog.at_level("INFO", "cpstream.access"):
        if way == "random access":
            assert len(RemoteEmbeddingsDataset(server.url, "dev")[[3, 1]][1]) == 2
        elif way == "client":
            with Client(server.url) as client:
                assert len(list(client.batches("dev", batch_size=100))) == 3
        elif way == "httpx":  # hooks go past the shorter way
            with Client(server.url, event_hooks={"request": []} | {"response": [lambda _: None]}) as client:
                assert len(list(client.batches("dev", batch_size=100))) == 3
        else:
            assert sum(len(cps) for _, cps in StreamingEmbeddingsDataset(server.url, "train", batch_size=64, cache=None)) == 1800
        poll(lambda: any("/batches" in each["path"] or "/take" in each["path"] for each in records(caplog)))
    found = records(caplog)
    assert len(found) >= 2
    assert {each["trace_id"] for each in found} == {f"{TRACE:032x}"}


@pytest.mark.usefixtures("traced")
def test_retries_belong_to_it_too(run_server: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = run_server()
    with caplog.at_level("INFO", "cpstream.access"), FaultProxy(server.url, 1, reply_bytes=200_000, kinds=("cut",)) as proxy:
        with Client(proxy.url, retry=Retry(first_delay_s=0.01)) as client:
            for _ in range(8):
                assert sum(batch.num_rows for batch in client.batches("dev", batch_size=64)) == 300
        assert proxy.counts["cut"] > 0
    found = records(caplog)
    assert len({each["request_id"] for each in found}) == len(found) > 2
    assert {each["trace_id"] for each in found} == {f"{TRACE:032x}"}


def test_each_thread_is_in_its_own_trace(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def ask(number: int) -> None:
        with trace.use_span(NonRecordingSpan(SpanContext(number, SPAN, is_remote=False))), Client(server.url) as client:
            client.split("dev")
            with trace.use_span(NonRecordingSpan(SpanContext(number + 100, SPAN, is_remote=False))):
                client.split("dev")
        assert number

    with caplog.at_level("INFO", "cpstream.access"):
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, range(1, 9)))
        with Client(server.url) as client:
            client.split("dev")
        poll(lambda: len(records(caplog)) == 17)
    ids = [each["trace_id"] for each in records(caplog)]
    assert sorted(id for id in ids if id) == sorted(f"{n:032x}" for k in range(1, 9) for n in (k, k + 100))
    assert ids.count(None) == 1
