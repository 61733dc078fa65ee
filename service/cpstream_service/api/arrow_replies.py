"""Arrow streams as ASGI messages."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cpstream_client.contract.wire import ARROW_STREAM

from ..batches.account import clock
from ..batches.gather import CHUNK_BYTES
from ..batches.server import ArrowReply, BatchServer
from .outlet import Outlet


class ArrowStream(Response):
    """An Arrow IPC stream: schema, batches, end mark. Content-Length is known before the first byte is gathered."""

    media_type = ARROW_STREAM

    def __init__(self, server: BatchServer, reply: ArrowReply, headers: Mapping[str, str]) -> None:
        self._server, self._reply = server, reply
        super().__init__(headers={"Content-Length": str(reply.nbytes), **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope["state"]["client"]
        with self._server.stream(client, scope["state"]["max_streams"]):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            scope["state"]["account"] = self._reply.account
            await self._send_chunks(Outlet(self._server, scope, send), receive, send)

    async def _send_chunks(self, outlet: Outlet, receive: Receive, send: Send) -> None:
        reply, left, account = self._reply, self._reply.nbytes, self._reply.account

        async def room() -> None:
            began = clock()
            await outlet.room()
            account.send_s += clock() - began
            reply.limit.nbytes = outlet.most()

        reply.limit.nbytes = outlet.most()
        # Not worth a task where all of it goes out at once.
        gone = asyncio.ensure_future(_disconnected(receive)) if left > 2 * CHUNK_BYTES else None
        try:
            async with aclosing(self._server.gathered(reply.chunks, left, reply.in_loop, outlet.client, account, room)) as chunks:
                async for chunk in chunks:
                    left -= len(chunk)
                    # The transport keeps this memoryview, and with it the lease, until the socket has taken its last byte.
                    began = clock()
                    await send({"type": "http.response.body", "body": chunk.data, "more_body": left > 0})
                    account.send_s += clock() - began
                    outlet.sent(len(chunk))
                    del chunk
                    if gone is not None and gone.done():
                        return
        finally:
            if gone is not None:
                gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
