"""An HTTP proxy, as companies have them before their networks and clusters before their services.

`with Proxy() as proxy` forwards requests of whole URLs, and tunnels CONNECT. `Proxy(upstream=url)` stands before a service, as
nginx does. proxy.seen counts requests by method, proxy.requests holds their bytes. What it may do:

password  want `Proxy-Authorization: Basic` of user:password, else answer 407
framing   "length": as the service said; "chunked": in pieces of odd sizes; "close": without a length, ended by closing
"""

import asyncio
import threading
from base64 import b64encode
from collections import Counter
from urllib.parse import urlsplit

FRAMINGS = ("length", "chunked", "close")
_AWAY = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"


class Proxy:
    def __init__(self, *, upstream: str = "", password: str = "", framing: str = "length") -> None:
        self.seen: Counter[str] = Counter()
        self.requests: list[bytes] = []
        self._upstream, self._framing = urlsplit(upstream), framing
        self._wanted = b"Basic " + b64encode(password.encode()) if password else b""
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "Proxy":
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop).result()
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # the transports close at the next turns of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether another one may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        method, target, _ = line.split(b" ")
        headers = {name.lower(): value for name, value in (field.split(b": ", 1) for field in fields)}
        self.seen[method.decode()] += 1
        if self._wanted and headers.get(b"proxy-authorization") != self._wanted:
            writer.write(_AWAY)
            await writer.drain()
            return True
        if method == b"CONNECT":
            await self._tunnel(reader, writer, target)
            return False
        url = urlsplit(target.decode())
        assert bool(url.scheme) != bool(self._upstream.scheme), f"asked for {target!r}"
        to = url if url.scheme else self._upstream
        path = b"/" + target.split(b"/", 3)[3] if url.scheme else target
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        self.requests.append(head + body)
        kept = [field for field in fields if not field.lower().startswith((b"connection:", b"proxy-"))]
        service_in, service_out = await asyncio.open_connection(to.hostname, to.port, limit=2**20)
        try:
            service_out.write(b"\r\n".join([method + b" " + path + b" HTTP/1.1", *kept, b"Connection: close", b"", body]))
            return await self._reply(service_in, writer)
        finally:
            service_out.close()

    async def _reply(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> bool:
        head = await source.readuntil(b"\r\n\r\n")
        fields = [field for field in head[:-4].split(b"\r\n") if not field.lower().startswith(b"connection:")]
        if self._framing != "length":
            fields = [field for field in fields if not field.lower().startswith(b"content-length:")]
            fields.append(b"Transfer-Encoding: chunked" if self._framing == "chunked" else b"Connection: close")
        sink.write(b"\r\n".join([*fields, b"", b""]))
        size = 1
        while piece := await source.read(size):
            if self._framing == "chunked":
                piece = b"%x\r\n%s\r\n" % (len(piece), piece)
            sink.write(piece)
            await sink.drain()
            size = min(3 * size + 1, 100_003)
        if self._framing == "chunked":
            sink.write(b"0\r\n\r\n")
        await sink.drain()
        return self._framing != "close"

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: bytes) -> None:
        host, _, port = target.decode().rpartition(":")
        service_in, service_out = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = [asyncio.ensure_future(_pump(reader, service_out)), asyncio.ensure_future(_pump(service_in, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            service_out.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while piece := await source.read(65536):
        sink.write(piece)
        await sink.drain()
