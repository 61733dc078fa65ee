"""Where the bytes of a reply go: how many at once, and when there is room for more."""

from starlette.types import Scope, Send

from ..batches.pace import PACE, Pace
from ..batches.server import BatchServer


class Outlet:
    """Of one reply of a client's. The server's part of it is a connection's Pace; without one, nothing is held back."""

    def __init__(self, server: BatchServer, scope: Scope, send: Send) -> None:
        self.client: str = scope["state"]["client"]
        self._server, self._send = server, send
        self._pace: Pace | None = scope["state"].get(PACE)

    def most(self) -> int:
        """Bytes that may be made next. Call it when there is room."""
        if self._pace is not None:
            self._pace.taken()
        return self._server.chunk_bytes(self.client, self._pace)

    def sent(self, nbytes: int) -> None:
        if self._pace is not None:
            self._pace.sent(nbytes)

    async def room(self) -> None:
        """Returns when nearly all that was sent is the kernel's. So nothing is made, and held, for a reader that stopped."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": True})
