"""Pooled buffers: no byte changes while anything refers to it, in a transport or in a loop's hands, and all come back."""

import asyncio
import gc
import http.client
import itertools
import socket
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Server, grown, poll, serving, stalled_stream
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_bytes import check_checksums

from cpstream_client import BatchQuery
from cpstream_client.buffers import ALIGNMENT, BufferPool, Bytes
from cpstream_client.contract.wire import split_path
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_service.app import create_app
from cpstream_service.batches.server import BatchServer
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot


class Watched(BufferPool):
    """A pool that knows which of its leases are still referred to."""

    def __init__(self, max_idle: int) -> None:
        super().__init__(max_idle)
        self.alive: set[int] = set()
        self._numbers = itertools.count()
        self.made = 0

    def lease(self, nbytes: int) -> Bytes:
        lease = super().lease(nbytes)
        number = self.made = next(self._numbers) + 1
        self.alive.add(number)
        weakref.finalize(lease, self.alive.discard, number)
        return lease


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 300_000), max_size=30), keep=st.lists(st.sampled_from(["array", "view", "memory", "arrow"])))
def test_a_lease_is_nobody_elses_while_anything_refers_to_it(sizes: list[int], keep: list[str]) -> None:
    pool = BufferPool(max_idle=4)
    held: list[tuple[object, int]] = []
    for number, nbytes in enumerate(sizes):
        lease = pool.lease(nbytes)
        assert lease.nbytes == nbytes
        assert lease.ctypes.data % ALIGNMENT == 0
        lease[:] = number % 256
        how = keep[number % len(keep)] if keep else "nothing"
        if how == "array":
            held.append((lease, number))
        elif how == "view":
            held.append((lease[nbytes // 2 :].reshape(1, -1).T, number))
        elif how == "memory":
            held.append((memoryview(lease)[nbytes // 3 :], number))
        elif how == "arrow":
            held.append((pa.py_buffer(lease).slice(nbytes // 2), number))
        del lease
        if number % 3 == 2 and held:
            held.pop(0)
        for kept, value in held:
            assert (np.frombuffer(np.ascontiguousarray(kept), np.uint8) == value % 256).all()


def test_buffers_come_back_and_are_few() -> None:
    pool = BufferPool(max_idle=2)
    addresses = set()
    for _ in range(50):
        lease = pool.lease(100_000)
        addresses.add(lease.ctypes.data)
        del lease
    assert len(addresses) == 1
    many = [pool.lease(1000) for _ in range(10)]
    many.clear()
    assert len(pool._idle) == 2


def test_no_python_runs_when_a_lease_goes() -> None:
    """Or Ctrl-C, which Python raises between any two lines in the main thread, would be lost there: what is raised while an object
    goes is only printed, and the loop goes on.
    """
    pool, called = BufferPool(max_idle=2), list[str]()
    held: list[object] = [
        [pool.lease(1000), pool.lease(2000)[100:].view(), memoryview(pool.lease(3000)), torch.from_numpy(pool.lease(9))]
    ]
    gc.collect()
    gc.disable()  # what it would call for garbage of others
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    held.clear()
    sys.setprofile(None)
    gc.enable()
    assert called == []
    assert len(pool._idle) == 2


# On the service


@contextmanager
def watched_service(snapshot: Snapshot, num_samples: int, **settings: object) -> Iterator[tuple[Server, BatchServer, Watched]]:
    big = grown(snapshot, "train", num_samples)
    app = create_app(big, ServeSettings(**settings))  # type: ignore[arg-type]
    pool = Watched(max_idle=8)
    # uvloop holds on to the caller's memory, as asyncio does from Python 3.12 on; before that asyncio copies what it holds.
    with serving(app, loop="uvloop") as url:
        app.state.service.batch_server._pool = pool
        yield Server(url, big), app.state.service.batch_server, pool


def read_slowly(url: str, path: str, piece_bytes: int) -> bytes:
    """The body of a reply, read in small pieces through a small window, so that the service must wait for this reader."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.settimeout(60)
    connection.sock.connect((host, int(port)))
    connection.request("GET", path)
    response = connection.getresponse()
    body = bytearray()
    while piece := response.read(piece_bytes):
        body += piece
    assert int(response.headers["Content-Length"]) == len(body)
    connection.close()
    return bytes(body)


def test_no_sent_byte_changes_under_slow_readers(snapshot: Snapshot) -> None:
    """uvicorn's send returns while the transport still holds most of a chunk, and other streams take buffers meanwhile."""
    with watched_service(snapshot, 16_000) as (server, _, pool), ThreadPoolExecutor(8) as readers:
        split = server.snapshot.splits["train"]

        def check(reader: int) -> int:
            query = BatchQuery(batch_size=[16, 256, 4096, 16_000][reader % 4], shuffle="uniform", seed=reader)
            params = "&".join(f"{name}={value}" for name, value in query.to_params().items())
            path = f"{split_path('train', 'batches')}?{params}"
            body = read_slowly(server.url, path, [2**16, 2**18, 2**20][reader % 3])
            order = query.plan(16_000).order()
            at = 0
            for batch in pa.ipc.open_stream(body):
                indices = order[at : at + batch.num_rows]
                values = batch["embedding"].flatten().to_numpy().reshape(len(indices), -1)
                assert np.array_equal(values, split.embeddings[indices]), f"reader {reader}, row {at}"
                assert np.array_equal(batch["index"].to_numpy(), indices)
                at += batch.num_rows
            check_checksums(body, query.plan(16_000).num_steps)
            return at

        assert list(readers.map(check, range(6))) == [16_000] * 6
        assert len(pool._idle) <= 8
        poll(lambda: not pool.alive)


def test_a_client_that_goes_away_frees_its_stream_and_buffers(snapshot: Snapshot) -> None:
    with watched_service(snapshot, 60_000, max_streams=2) as (server, batch_server, pool):
        path = f"{split_path('train', 'batches')}?batch_size=512"
        for _ in range(5):  # more than there are streams
            with stalled_stream(server.url, path), stalled_stream(server.url, path):
                poll(lambda: batch_server.open_streams == 2)
                poll(lambda: pool.made > 0)
                assert _status(server.url, path) == 503
            poll(lambda: batch_server.open_streams == 0)
        poll(lambda: not pool.alive)
        assert _status(server.url, path) == 200


def _status(url: str, path: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", path + "&limit=1")
    status = connection.getresponse().status
    connection.close()
    return status


def test_many_streams_take_turns_with_the_event_loop() -> None:
    """A health check needs a few rounds of the event loop: each may hold one chunk, however many streams there are."""
    server = BatchServer(ServeSettings())
    gathered = 0

    def chunks() -> Iterator[Bytes]:
        nonlocal gathered
        while True:
            gathered += 1
            yield np.zeros(1, np.uint8)

    async def read() -> None:
        async for _ in server.gathered(chunks(), 20):
            pass

    async def most_in_a_round() -> int:
        streams = [asyncio.ensure_future(read()) for _ in range(16)]
        await asyncio.sleep(0)  # the first chunk of each, which for small replies is the only one
        most = 0
        while not all(stream.done() for stream in streams):
            before = gathered
            await asyncio.sleep(0)
            most = max(most, gathered - before)
        return most

    try:
        assert asyncio.run(most_in_a_round()) == 1
        assert gathered == 16 * 20
    finally:
        server.close()


def test_head_takes_no_stream(snapshot: Snapshot) -> None:
    with watched_service(snapshot, 1800) as (server, _, pool):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        for _ in range(3):
            connection.request("HEAD", split_path("train", "batches"))
            assert connection.getresponse().read() == b""
        connection.close()
        assert pool.made == 0


# On the client


@pytest.mark.parametrize("cache", [None, "auto"])
@pytest.mark.parametrize("batch_size", [7, 256, 1800])
def test_batches_that_a_loop_keeps_do_not_change(server: Server, batch_size: int, cache: str | None) -> None:
    """Through a prefetch of almost nothing and a pool that is reused all the time; and gathered from memory."""
    split = server.snapshot.splits["train"]
    dataset = StreamingEmbeddingsDataset(
        server.url, "train", batch_size=batch_size, shuffle=True, columns=("embedding", "index"), prefetch_bytes=1, cache=cache
    )
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for number, (embedding, index) in enumerate(dataset):
            embedding += 1  # a loop may write into what it got
            if number % 3 == 0:
                kept.append((embedding, index))
    for embedding, index in kept:
        assert torch.equal(embedding, torch.from_numpy(split.embeddings[index.numpy()]) + 1)
