"""Clients are served in turn, however many connections each of them has: counted in turns and in bytes, never in seconds."""

import asyncio
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from conftest import Server, grown

from cpstream_client.buffers import Bytes
from cpstream_service.batches.server import BatchServer
from cpstream_service.batches.shares import Shares
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot


def connection(url: str, address: str) -> socket.socket:
    """A connection to the service from an address of this machine: one client."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60, source_address=(address, 0))


@pytest.mark.parametrize(("in_loop", "most"), [(True, 1.1), (False, 3.0)])  # one stream cannot use two threads
def test_a_client_with_50_streams_gets_no_more_turns_than_one_with_1(snapshot: Snapshot, in_loop: bool, most: float) -> None:
    server, turns = BatchServer(ServeSettings()), Counter[str]()
    beside = Counter[str]()  # turns of the other one while this one had its own, which may take seconds on a busy machine

    def chunks(client: str) -> Iterator[Bytes]:
        while True:
            turns[client] += 1
            if not in_loop:
                before = turns["a"]
                time.sleep(0.002)  # the disk
                beside[client] += turns["a"] - before
            yield np.zeros(1, np.uint8)

    async def read(client: str, number: int) -> None:
        async for _ in server.gathered(chunks(client), number, in_loop, client):
            pass

    async def run() -> None:
        many = [asyncio.ensure_future(read("a", 10_000)) for _ in range(50)]
        await asyncio.sleep(0)
        at_first = turns["a"]
        await read("b", 100)
        assert 90 <= turns["a"] - at_first <= 100 * most + beside["b"], (turns, beside)
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await read("c", 3)  # nothing is held by those who are gone
        assert server._turns.held == server._threads.held == 0

    asyncio.run(run())
    server.close()


@pytest.mark.parametrize(("beside", "most"), [("batches?batch_size=512", 2.0), ("embeddings.npy", 1.0)])  # pieces of half the size
def test_a_trainer_beside_one_of_30_connections_gets_as_many_bytes(
    run_server: Callable[..., Server], snapshot: Snapshot, beside: str, most: float
) -> None:
    server = run_server(snapshot=grown(snapshot, "train", 100_000))
    asked = {"127.0.0.2": beside, "127.0.0.3": "batches?batch_size=512"}
    got, buffer = Counter[str](), bytearray(2**20)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for address in ["127.0.0.2"] * 30 + ["127.0.0.3"]:
            sock = stack.enter_context(connection(server.url, address))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
            ask = f"GET /v1/splits/train/{asked[address]} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            sock.sendall(ask * 50 if "npy" in asked[address] else ask)  # 1 MB each
            selector.register(sock, selectors.EVENT_READ, address)
        shares = []
        for _ in range(4):
            got.clear()
            while got["127.0.0.3"] < 12_000_000:
                for key, _ in selector.select(60):
                    got[key.data] += key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
            shares.append(got["127.0.0.2"] / got["127.0.0.3"])
    # One connection in 31 would have got a thirtieth. At first, and while this process stands still, the kernel fills its buffers,
    # of which the other one has 30.
    assert sorted(shares)[1] < most, shares


def test_what_there_is_too_little_of_is_given_in_turn() -> None:
    async def run() -> None:
        shares, order = Shares(10, each=6), list[str]()

        async def want(client: str, amount: int) -> None:
            await shares.wait(client, amount)
            order.append(f"{client}{amount}")

        tasks = []
        for client, amount in [("a", 5), ("a", 2), ("a", 1), ("b", 4), ("b", 3), ("c", 9), ("d", 1)]:
            tasks.append(asyncio.ensure_future(want(client, amount)))
            await asyncio.sleep(0)
        # a has 5 of its 6, and wants 2; b wants 3 beyond its 4; c wants more than is left, and is not passed over
        assert (order, shares.held, shares.take("e")) == (["a5", "b4"], 9, False)
        shares.give("a", 5)
        await asyncio.sleep(0)
        assert order == ["a5", "b4"]
        shares.give("b", 4)
        await asyncio.sleep(0)
        assert order[2:] == ["c9", "d1"]
        tasks[1].cancel()
        shares.give("c", 9)
        await asyncio.sleep(0)
        assert order[4:] == ["a1", "b3"]
        for client, amount in [("d", 1), ("a", 1), ("b", 3)]:
            shares.give(client, amount)
        assert shares.take("c", 11)  # more than there is, alone
        assert not shares.take("d", 1)
        shares.give("c", 11)
        assert (shares.held, shares._waiting, shares._held_by) == (0, {}, {})

    asyncio.run(run())


def test_what_was_given_to_a_request_that_is_gone_is_given_on() -> None:
    async def run() -> None:
        shares = Shares(1)
        assert shares.take("a")
        gone = asyncio.ensure_future(shares.wait("b"))
        await asyncio.sleep(0)
        shares.give("a")
        gone.cancel()  # at the moment at which it was its turn
        await asyncio.gather(gone, return_exceptions=True)
        assert shares.take("c")

    asyncio.run(run())
