"""What one request may cost: memory and turns follow what there is, not what was asked for. Memory is that of a real process."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import DEMO_DATA, Server, poll

from cpstream_client.buffers import BufferPool
from cpstream_client.contract import wire
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_service.api.take_body import MAX_JSON_BYTES
from cpstream_service.batches.gather import CHUNK_FRAMES, Columns, reply
from cpstream_service.batches.server import ROWS_IN_LOOP, BatchServer
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

TRAIN = "/v1/splits/train"
MOST_MB = 100


class Process:
    """A service of the demo in a process of its own."""

    def __init__(self, folder: Path) -> None:
        log = folder / "log"
        arguments = ["serve", "--source-path", str(DEMO_DATA), "--snapshot-dir", str(folder), "--host", "127.0.0.1", "--port", "0"]
        with log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "cpstream_service", *arguments], stderr=file)
        poll(lambda: "serving at" in log.read_text() or self.process.poll() is not None)
        found = re.search(r"serving at (http://[\d.:]+)", log.read_text())
        assert found, log.read_text()
        self.http = httpx.Client(base_url=found[1], timeout=60)

    def memory_mb(self, which: str) -> float:
        """VmRSS is what it has now, VmHWM the most that it had."""
        found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(90)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("costs"))
    process.http.get(f"{TRAIN}/batches").raise_for_status()  # what every service has after its first epoch
    yield process
    process.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "query",
    [
        "batch_size=400000000&columns=cps",
        "batch_size=2147483647",
        "batch_size=2147483647&columns=file_path&shuffle=blocks",
        "batch_size=1073741824&world_size=7&rank=6&remainder=exact",
        "batch_size=2147483647&num_workers=2147483647&worker=5",
        "batch_size=1&columns=file_path",
        "batch_size=1&world_size=2147483647&remainder=pad",
    ],
)
def test_a_batch_larger_than_the_split_costs_no_more_than_the_split(service: Process, method: str, query: str) -> None:
    idle = service.memory_mb("VmRSS")
    answer = service.http.request(method, f"{TRAIN}/batches?{query}")
    assert answer.status_code == 200, answer.text
    assert service.memory_mb("VmHWM") - idle < MOST_MB


def test_refused_bodies_are_not_kept(service: Process) -> None:
    most = b'{"indices": [%s1.5]}' % (b"0," * (MAX_JSON_BYTES // 2 - 20))
    service.http.post(f"{TRAIN}/take", content=most)
    before = service.memory_mb("VmRSS")
    for body in (most, most.replace(b"1.5", b"1e9"), b"[" * MAX_JSON_BYTES, most[:-1], most.replace(b"indices", b"indexes")) * 4:
        assert service.http.post(f"{TRAIN}/take", content=body).json()["code"] == "invalid-parameter"
    assert service.memory_mb("VmRSS") - before < MOST_MB


def test_a_json_body_is_of_a_size_that_people_write(service: Process) -> None:
    most = b'{"indices": [%s0]}' % (b"0," * (MAX_JSON_BYTES // 2))
    refused = service.http.post(f"{TRAIN}/take?columns=index", content=most)
    assert refused.json()["code"] == "payload-too-large"
    assert "raw" in refused.json()["detail"]
    raw = np.zeros(MAX_JSON_BYTES // 2 + 1, "<i8").tobytes()
    headers = {"Content-Type": wire.OCTET_STREAM}
    assert service.http.post(f"{TRAIN}/take?columns=index", content=raw, headers=headers).status_code == 200


def test_no_request_has_the_service_import_pandas(service: Process) -> None:
    """It takes a fifth of a second, in which nobody is answered, and 50 MB: pyarrow imports it for the least convenience."""
    as_json, every = {"Accept": wire.JSON}, {"columns": ",".join(wire.COLUMNS), "limit": 1, "shuffle": "true"}
    asked = [
        ("", {}),
        ("/rows", {"embedding": True}),
        ("/plan", {"shuffle": "blocks"}),
        ("/file_paths.json", {}),
        ("/batches", every),
    ]
    for path, params in asked:
        for headers in ({}, as_json):
            assert service.http.get(TRAIN + path, params=params, headers=headers).status_code == 200
    for headers in ({}, as_json):
        params = {"columns": "file_path", "dtype": "float16"}
        assert service.http.post(f"{TRAIN}/take", params=params, json={"indices": [3, 1]}, headers=headers).status_code == 200
    libraries = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "/pyarrow/" in libraries
    assert "/pandas/" not in libraries


@pytest.mark.parametrize("columns", [("cps",), ("file_path",), ("embedding", "cps", "index")])
def test_a_turn_is_short_however_small_its_batches(snapshot: Snapshot, columns: tuple[wire.Column, ...]) -> None:
    split = snapshot.splits["train"]
    of_split = Columns(split.embeddings, split.cps, split.file_paths, columns)
    batches = [np.array([i], np.int64) for i in range(1000)]
    most = max(of_split.frame_of(batch).nbytes for batch in batches) * CHUNK_FRAMES
    chunks = [len(chunk) for chunk in reply(of_split, b"", batches, BufferPool(2))]
    assert max(chunks) <= most + 8
    assert len(chunks) == -(-1000 // CHUNK_FRAMES)


def test_a_length_is_known_without_making_every_frame(run_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server, made = run_server(), []
    monkeypatch.setattr(Columns, "frame_of", lambda self, indices: made.append(indices))
    for workers in ("", "&num_workers=3&worker=2"):
        httpx.head(f"{server.url}{TRAIN}/batches?batch_size=1&columns=file_path{workers}").raise_for_status()
    assert not made


@pytest.mark.parametrize("columns", ["file_path", "embedding"])
def test_a_length_of_any_batches_is_known_without_making_every_frame(
    run_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    path, made = f"{TRAIN}/batches?columns={columns}", []
    chosen = IndexBatches(np.arange(1800), np.array([3] * 599 + [2, 1]))
    body, headers = chosen.pack(), {"Content-Type": wire.OCTET_STREAM}
    length = len(httpx.post(run_server().url + path, content=body, headers=headers).content)
    real = Columns.frame
    monkeypatch.setattr(Columns, "frame", lambda self, *args: made.append(args) or real(self, *args))  # type: ignore[func-returns-value]
    refused = httpx.post(run_server(max_reply_bytes=length - 1).url + path, content=body, headers=headers)
    assert f" {length} bytes" in refused.json()["detail"]
    assert len(made) == 3  # one a size


def test_one_large_batch_among_small_ones_is_not_gathered_in_the_event_loop(snapshot: Snapshot) -> None:
    server = BatchServer(ServeSettings())
    server.open(snapshot)
    split, small = snapshot.splits["train"], np.zeros(1, np.int64)
    for batches, in_loop in (([small] * 9, True), ([small] * 9 + [np.zeros(ROWS_IN_LOOP + 1, np.int64)], False)):
        reply = asyncio.run(server.chosen(split, IndexBatches.of(batches), "float32", ("cps", "index")))
        assert reply.in_loop == in_loop
    server.close()


@pytest.mark.parametrize("query", ["columns=cps&batch_size=1", "columns=file_path&batch_size=7", "batch_size=32", "limit=1"])
def test_the_limit_counts_what_is_sent(run_server: Callable[..., Server], query: str) -> None:
    path = f"{TRAIN}/batches?{query}"
    length = int(httpx.head(run_server().url + path).headers["content-length"])
    assert len(httpx.get(run_server(max_reply_bytes=length).url + path).content) == length
    refused = httpx.get(run_server(max_reply_bytes=length - 1).url + path)
    assert refused.json()["code"] == "payload-too-large"
    assert f" {length} bytes" in refused.json()["detail"]
