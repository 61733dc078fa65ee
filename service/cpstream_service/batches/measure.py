"""How fast batches can be made and sent when nobody has to take them: the server's half of a stream."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from cpstream_client.contract.wire import BatchQuery
from cpstream_client.cpus import throttled_s

from ..snapshot.store import Split
from ..tls import Cipher
from .account import Account, clock
from .server import BatchServer

MEASURE_S = 0.5
"""Several periods of the kernel's CPU quotas, which are of 0.1 s."""
_SWALLOWED_BYTES = 8 * 1024**2
"""At once: the thread that swallows takes the GIL after each."""


@dataclass(frozen=True, slots=True)
class Measured:
    """throttled_s: None where there is no quota. other_streams: the most that were open beside it."""

    seconds: float
    samples: int
    batches: int
    nbytes: int
    gather_s: float
    wait_s: float
    send_s: float
    cpu_s: float
    throttled_s: float | None
    other_streams: int


async def measure(
    server: BatchServer, split: Split, query: BatchQuery, client: str, max_streams: int | None = None, cipher: Cipher | None = None
) -> Measured:
    """Gather the query's batches, again and again, and send them to a socket that swallows them.

    It counts as a stream of the client's, who may have max_streams, and takes turns as one. cipher: of a service that speaks TLS;
    what it takes counts as sending. Raises as BatchServer.batches and BatchServer.stream.
    """
    stopped, cpu_s, began = throttled_s(), time.process_time(), clock()
    samples = batches = nbytes = others = 0
    total = Account()
    with server.stream(client, max_streams), _swallower() as sink:
        while not nbytes or clock() - began < MEASURE_S:
            reply = await server.batches(split, query)
            account, sent = reply.account, 0
            async with aclosing(server.gathered(reply.chunks, reply.nbytes, reply.in_loop, client, account)) as chunks:
                async for chunk in chunks:
                    then = clock()
                    await asyncio.get_running_loop().sock_sendall(
                        sink, chunk.data if cipher is None else cipher.encrypted(chunk.data)
                    )
                    account.send_s += clock() - then
                    sent += len(chunk)
                    others = max(others, server.open_streams - 1)
                    del chunk
                    if clock() - began >= MEASURE_S:
                        break
            whole = account.sent(sent)
            samples, batches, nbytes = samples + whole[0], batches + whole[1], nbytes + sent
            for name in ("gather_s", "wait_s", "send_s"):
                setattr(total, name, getattr(total, name) + getattr(account, name))
    still = throttled_s()
    return Measured(
        seconds=clock() - began,
        samples=samples,
        batches=batches,
        nbytes=nbytes,
        gather_s=total.gather_s,
        wait_s=total.wait_s,
        send_s=total.send_s,
        cpu_s=time.process_time() - cpu_s,
        throttled_s=None if still is None or stopped is None else still - stopped,
        other_streams=others,
    )


@contextmanager
def _swallower() -> Iterator[socket.socket]:
    """A connection over this machine's own network. What is sent there costs what sending costs, and reading it next to nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, peer = listener.accept()
        while peer != sender.getsockname():  # another program of this machine was faster, and gets nothing
            receiver.close()
            receiver, peer = listener.accept()
    thread = threading.Thread(target=_swallow, args=(receiver,), name="cpstream-swallow", daemon=True)
    thread.start()
    try:
        sender.setblocking(False)
        yield sender
    finally:
        sender.close()
        thread.join()


def _swallow(receiver: socket.socket) -> None:
    place = bytearray(_SWALLOWED_BYTES)
    with receiver:
        while receiver.recv_into(place, _SWALLOWED_BYTES, socket.MSG_TRUNC | socket.MSG_WAITALL):  # which copies nothing
            pass
