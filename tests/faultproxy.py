"""A TCP proxy that breaks every connection that goes through it, at a byte and in a way that a seed chooses.

cut          ends the connection in the middle of a reply, as a process that dies does
reset        the same by a reset, as a machine that reboots or a firewall does
stall        stops sending, and keeps the connection open
slow         sends byte by byte for a while; nothing is wrong
refuse       lets nobody connect for a moment
bad_gateway  answers 429, 502, 503 or 504 itself, as a proxy whose service is away
flip_reply   changes a byte of what the service sends: status line, headers, schema, batches, checksums, end mark
flip_request changes a byte of what the client sends; not of one request twice, for a refusal that comes twice is final
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from dataclasses import dataclass

from conftest import stop_listening

KINDS = ("cut", "reset", "stall", "slow", "refuse", "bad_gateway", "flip_reply", "flip_request")
_WEIGHTS = {"flip_reply": 4, "flip_request": 3}
"""These have the most ways to go wrong, and a cut comes behind them anyway."""
_REFUSES_S = 0.02
_DAMAGED = 16
"""Requests that are under way at once, and more."""
_STATUSES = ("429 Too Many Requests", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout")


@dataclass
class Fault:
    """What will happen to one connection. at: before which byte of the replies, or of the requests; replied: bytes so far."""

    kind: str
    at: int
    mask: int
    replied: int = 0


class FaultProxy:
    """`with FaultProxy(url, seed) as proxy` listens at proxy.url, as url does. proxy.counts: faults that took place, by kind."""

    def __init__(self, url: str, seed: int, *, reply_bytes: int = 20_000, kinds: tuple[str, ...] = KINDS) -> None:
        scheme, address = url.split("://")
        host, port = address.split(":")
        self.target = host, int(port)
        self.counts: Counter[str] = Counter()
        self.damaged: deque[bytes] = deque(maxlen=_DAMAGED)
        self._random = random.Random(seed)
        self._reply_bytes, self.kinds = reply_bytes, kinds
        # Holds the port while nobody listens, so that connecting to it is refused.
        self._reserved = _bound(("127.0.0.1", 0))
        self._address = self._reserved.getsockname()
        self.url = "{}://{}:{}".format(scheme, *self._address)
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "FaultProxy":
        self._thread = threading.Thread(target=self._loop.run_forever, name="faultproxy")
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()

    async def _listen(self) -> None:
        sock = _bound(self._address)
        self._server = await asyncio.start_server(self._accept, sock=sock)

    async def _close(self) -> None:
        if self._server is not None:
            await stop_listening(self._server)
        for task in list(self._tasks):
            task.cancel()
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close at the next turns of the loop

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._transports.add(client_out.transport)
        try:
            await self._connection(client_in, client_out, self._draw())
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            client_out.transport.abort()
            self._transports.discard(client_out.transport)
            self._tasks.discard(task)

    def _draw(self) -> Fault:
        kind = self._random.choices(self.kinds, [_WEIGHTS.get(kind, 1) for kind in self.kinds])[0]
        far = self._random.random() < 0.6  # else in the head of a reply or a request
        at = self._random.randrange(2 * self._reply_bytes if far else 1500)
        if kind == "flip_request":
            at = self._random.randrange(1200)
        return Fault(kind, at, self._random.choice([1 << self._random.randrange(8), self._random.randrange(1, 256)]))

    async def _connection(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter, fault: Fault) -> None:
        if fault.kind == "refuse":
            await self._refuse()
            return
        if fault.kind == "bad_gateway":
            await self._answer(client_in, client_out)
            return
        service_in, service_out = await asyncio.open_connection(*self.target)
        self._transports.add(service_out.transport)
        upstream = asyncio.ensure_future(self._upstream(client_in, service_out, fault))
        self._tasks.add(upstream)  # type: ignore[arg-type]
        downstream = asyncio.ensure_future(self._downstream(service_in, client_out, fault))
        try:
            await asyncio.wait([upstream, downstream], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (upstream, downstream):
                pump.cancel()
            await asyncio.gather(upstream, downstream, return_exceptions=True)
            self._tasks.discard(upstream)  # type: ignore[arg-type]
            service_out.transport.abort()
            self._transports.discard(service_out.transport)
            if fault.kind != "reset":
                client_out.close()  # a FIN behind what was sent; abort would reset

    async def _upstream(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fault: Fault) -> None:
        passed = 0
        while piece := await source.read(65536):
            if fault.kind == "flip_request" and passed <= fault.at < passed + len(piece):
                head, _, body = piece.partition(b"\r\n\r\n")
                asked = head.partition(b"\r\n")[0] + body  # without its id
                if asked in self.damaged:
                    fault.at += len(piece)  # in the next one
                else:
                    self.damaged.append(asked)
                    piece = self._flipped(piece, fault, fault.at - passed)
            passed += len(piece)
            sink.write(piece)
            await sink.drain()

    async def _downstream(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fault: Fault) -> None:
        while piece := await source.read(65536):
            while piece and fault.kind != "flip_request" and fault.at < fault.replied + len(piece):
                position = fault.at - fault.replied
                if fault.kind == "flip_reply":
                    piece = self._flipped(piece, fault, position)
                    continue
                self.counts[fault.kind] += 1
                await self._pass(sink, piece[:position], fault)
                piece = piece[position:]
                if fault.kind == "stall":
                    await asyncio.Event().wait()  # until the client has had enough of it
                if fault.kind == "reset":
                    linger = struct.pack("ii", 1, 0)
                    sink.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if fault.kind != "slow":
                    return
                for byte in piece[:20]:
                    await self._pass(sink, bytes([byte]), fault)
                    await asyncio.sleep(0.001)
                piece = piece[20:]
                self._cut_later(fault)
            await self._pass(sink, piece, fault)

    async def _pass(self, sink: asyncio.StreamWriter, piece: bytes, fault: Fault) -> None:
        fault.replied += len(piece)
        sink.write(piece)
        await sink.drain()

    def _flipped(self, piece: bytes, fault: Fault, position: int) -> bytes:
        self.counts[fault.kind] += 1
        damaged = bytearray(piece)
        damaged[position] ^= fault.mask
        self._cut_later(fault)
        return bytes(damaged)

    def _cut_later(self, fault: Fault) -> None:
        """So that a connection which survived a fault does not go on for ever."""
        fault.kind, fault.at = "cut", fault.replied + self._random.randrange(100, 2 * self._reply_bytes)

    async def _refuse(self) -> None:
        if self._server is None:
            return  # another connection's refusal is under way
        self.counts["refuse"] += 1
        server, self._server = self._server, None
        await stop_listening(server)
        await asyncio.sleep(_REFUSES_S)
        await self._listen()

    async def _answer(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        await client_in.readuntil(b"\r\n\r\n")
        self.counts["bad_gateway"] += 1
        status = self._random.choice(_STATUSES)
        body = b"<html>away</html>"
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nRetry-After: 0\r\nContent-Length: {len(body)}\r\n\r\n"
        client_out.write(head.encode() + body)
        await client_out.drain()
        client_out.close()


def _bound(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(proto=socket.IPPROTO_TCP)  # named, or asyncio does not set TCP_NODELAY
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock
