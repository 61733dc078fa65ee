"""Readers that stop, and readers that are slow: what is kept for them, and for how long."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from conftest import grown, poll, serving, stalled_stream
from test_connections import connect
from test_connections import serving as command
from torch.utils.data import DataLoader

from cpstream_client.buffers import BufferPool, Bytes
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_service.app import create_app
from cpstream_service.batches.gather import CHUNK_BYTES
from cpstream_service.batches.pace import FIRST_BYTES, Pace
from cpstream_service.batches.server import HELD_BYTES, IDLE_BUFFERS, BatchServer
from cpstream_service.connections import Connection
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

PATH = "/v1/splits/train/batches"
TIMEOUT_S = 3.0
"""Longer than a test stands still on a busy machine: else it would itself be the reader that stopped."""


@contextmanager
def impatient(snapshot: Snapshot) -> Iterator[str]:
    """The URL of a service whose stall_timeout_s is TIMEOUT_S, of more than all buffers on the way hold."""
    app = create_app(grown(snapshot, "train", 60_000), ServeSettings())
    with serving(app, http=partial(Connection, stall_timeout_s=TIMEOUT_S)) as url:
        yield url


def open_streams(url: str) -> int:
    text = httpx.get(f"{url}/metrics").text
    return int(float(text.partition("\ncpstream_open_streams ")[2].split()[0]))


def read_all(sock: socket.socket) -> None:
    while sock.recv(2**20):
        pass


def test_a_reader_that_stops_is_let_go(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    with impatient(snapshot) as url, caplog.at_level(logging.WARNING, "cpstream.service"):
        with stalled_stream(url, PATH) as sock:
            poll(lambda: open_streams(url) == 1)
            poll(lambda: open_streams(url) == 0)
            with pytest.raises(ConnectionResetError):
                read_all(sock)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1, lines
        assert "connection of 127.0.0.1, which took nothing of its reply for 3 s (--stall-timeout-s)" in lines[0]


def test_a_reader_that_stops_at_the_end_of_its_reply_is_let_go(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    """Then the request is over, but its last bytes, and the connection, are still there."""
    dim = snapshot.splits["train"].info.embedding_dim
    with impatient(snapshot) as url, caplog.at_level(logging.WARNING, "cpstream.service"):
        with stalled_stream(url, f"{PATH}?batch_size=32&limit={FIRST_BYTES // (32 * 4 * dim)}"):  # all in the first chunk
            poll(lambda: open_streams(url) == 0)
            poll(lambda: caplog.records)
        assert "took nothing of its reply" in caplog.text


class Counting(BufferPool):
    """A pool that knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__(IDLE_BUFFERS)
        self.asked: list[int] = []

    def lease(self, nbytes: int) -> Bytes:
        self.asked.append(nbytes)
        return super().lease(nbytes)


def test_little_is_gathered_for_a_reader_that_has_not_shown_that_it_reads(snapshot: Snapshot) -> None:
    """64 readers that stop cost less than one that reads, which soon gets whole chunks."""
    app, pool = create_app(grown(snapshot, "train", 60_000), ServeSettings()), Counting()
    with serving(app, http=partial(Connection, stall_timeout_s=300.0)) as url, ExitStack() as stack:
        app.state.service.batch_server._pool = pool
        for _ in range(64):
            stack.enter_context(stalled_stream(url, PATH))
        poll(lambda: open_streams(url) == 64)
        stopped = len(pool.asked)
        read = len(httpx.get(url + PATH).content)  # while all of them could have had more
        assert sum(pool.asked) - read <= 64 * FIRST_BYTES * 5 / 4
        assert max(pool.asked[stopped:]) > CHUNK_BYTES / 2


def test_a_client_with_many_streams_gets_less_at_once_for_each(snapshot: Snapshot) -> None:
    server, most = BatchServer(ServeSettings()), Pace(lambda: None)
    most.chunk_bytes = CHUNK_BYTES
    with ExitStack() as stack:
        for _ in range(192):
            stack.enter_context(server.stream("a"))
        assert 192 * server.chunk_bytes("a", most) <= HELD_BYTES
        assert server.chunk_bytes("b", most) == CHUNK_BYTES
    server.close()


def test_a_connection_gets_more_each_time_that_it_took_what_it_got() -> None:
    proven: list[int] = []
    pace = Pace(lambda: proven.append(pace.chunk_bytes))
    sizes = []
    for _ in range(6):
        pace.taken()
        pace.taken()  # of nothing
        sizes.append(pace.chunk_bytes // FIRST_BYTES)
        pace.sent(pace.chunk_bytes)
    assert sizes == [1, 2, 4, 8, 8, 8]
    assert proven == [CHUNK_BYTES]


def test_a_slow_reader_is_none_that_stopped(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    with impatient(snapshot) as url, stalled_stream(url, PATH) as sock:
        poll(lambda: open_streams(url) == 1)
        until = time.monotonic() + 2 * TIMEOUT_S
        while time.monotonic() < until:  # 100 KB/s: the kernel asks for no more in all that time
            assert sock.recv(10_000)
            time.sleep(0.1)
        assert open_streams(url) == 1
    assert "took nothing" not in caplog.text


def test_a_loop_that_paused_for_longer_goes_on_at_the_right_sample(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    with impatient(snapshot) as url, caplog.at_level(logging.WARNING, "cpstream.service"):
        train = StreamingEmbeddingsDataset(
            url, "train", batch_size=512, shuffle=True, seed=4, columns=("index", "embedding"), prefetch_bytes=1
        )
        loop = iter(DataLoader(train, batch_size=None))
        got = [next(loop)[0]]
        poll(lambda: "took nothing of its reply" in caplog.text)
        got += [index for index, _ in loop]
        assert torch.equal(torch.cat(got), torch.randperm(60_000, generator=torch.Generator().manual_seed(4)))


def test_the_setting_holds_in_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPSTREAM_STALL_TIMEOUT_S", "1")
    monkeypatch.setenv("CPSTREAM_WORKERS", "2")
    body = np.zeros(60_000, "<i8").tobytes()
    with command(tmp_path) as (url, log), connect(url) as sock:
        head = f"POST /v1/splits/train/take HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        sock.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + body)
        poll(lambda: "took nothing of its reply" in log.read_text())
