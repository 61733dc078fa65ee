"""Bodies of requests as they arrive: bounded in bytes, all of them together, and in time."""

import asyncio
import math

from starlette.requests import Request

from ..batches.shares import Shares
from ..errors import BodyTimeout, Overloaded, PayloadTooLarge
from ..settings import ServeSettings

FREE_BYTES = 64 * 1024
"""Of a body, are not counted: a connection may hold as much before anybody has asked for it, and most bodies are no longer."""
SLOWEST_BYTES_S = 16 * 1024
"""A body that arrives more slowly is of nobody who waits for an answer."""
_LOOKS = 4


class _Arriving:
    """A body on its way. since_s: when as much of it had come as must come within the timeout; counted: how much that was."""

    __slots__ = ("counted", "is_late", "received", "since_s", "task")

    def __init__(self, task: asyncio.Task[object] | None, now_s: float) -> None:
        self.task, self.since_s = task, now_s
        self.received = self.counted = 0
        self.is_late = False


class Arrivals:
    """Reads bodies. One an app; for one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        most = settings.max_bodies_bytes
        self.bytes = Shares(most, each=most // 2)
        self._timeout_s = settings.body_timeout_s
        self._arriving: set[_Arriving] = set()
        self._is_watched = False

    async def read(self, request: Request, max_bytes: int, refusal: str, weight: int = 1) -> bytearray:
        """The body. refusal: what to say of one larger than max_bytes; weight: how much of the bound a byte takes.

        What it takes is held until `release`. Raises PayloadTooLarge, BodyTimeout, Overloaded.
        """
        length = _announced(request)
        announced = max_bytes if length is None else length  # of a body in chunks, nobody knows
        if announced > max_bytes:
            raise PayloadTooLarge(refusal)
        if length is not None and length > FREE_BYTES:
            await self._hold(request, length * weight)
        loop = asyncio.get_running_loop()
        arriving = _Arriving(asyncio.current_task(), loop.time())
        self._arriving.add(arriving)
        if not self._is_watched:
            self._watch(loop)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                arriving.received = len(body)
                if len(body) > max_bytes:
                    raise PayloadTooLarge(refusal)
                if length is None and len(body) > FREE_BYTES and "held_bytes" not in request.scope["state"]:
                    self._arriving.discard(arriving)  # it is we who keep it waiting
                    await self._hold(request, announced * weight)
                    arriving.since_s = loop.time()
                    self._arriving.add(arriving)
        except asyncio.CancelledError:
            if not arriving.is_late or arriving.task is None or arriving.task.uncancel():
                raise
            raise BodyTimeout(
                f"of the body, {len(body)} bytes came, and then hardly any for {self._timeout_s:g} s (--body-timeout-s); "
                "send less at a time, or over a better connection",
                headers={"Connection": "close"},
            ) from None
        finally:
            self._arriving.discard(arriving)
        if length is None and "held_bytes" in request.scope["state"]:
            needed = len(body) * weight
            self.bytes.give(request.scope["state"]["client"], request.scope["state"]["held_bytes"] - needed)
            request.scope["state"]["held_bytes"] = needed
        return body

    def release(self, request: Request) -> None:
        """When all that was made of the body is gone."""
        held = request.scope["state"].pop("held_bytes", 0)
        if held:
            self.bytes.give(request.scope["state"]["client"], held)

    async def _hold(self, request: Request, amount: int) -> None:
        client = request.scope["state"]["client"]
        if not self.bytes.take(client, amount):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self.bytes.wait(client, amount)
            except TimeoutError:
                raise Overloaded(
                    f"{self.bytes.held} bytes of request bodies are held, as many as allowed (--max-bodies-bytes); "
                    "send less at a time, or ask again in a second",
                    headers={"Connection": "close"},  # or the body would still have to be read
                ) from None
        request.scope["state"]["held_bytes"] = amount

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all bodies: most arrive with the head of their request, and should not cost one each."""
        self._is_watched = bool(self._arriving)
        if self._is_watched:
            due_s = loop.time() + self._timeout_s / _LOOKS
            loop.call_at(due_s, self._look, loop, due_s)

    def _look(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        now_s, enough = loop.time(), math.ceil(self._timeout_s * SLOWEST_BYTES_S)
        for arriving in self._arriving:
            arriving.since_s += now_s - due_s  # the loop itself stood still for so long, as when a machine sleeps: nothing was read
            if arriving.received - arriving.counted >= enough:
                arriving.counted, arriving.since_s = arriving.received, now_s
            elif now_s - arriving.since_s >= self._timeout_s and not arriving.is_late and arriving.task is not None:
                arriving.is_late = True
                arriving.task.cancel()
        self._watch(loop)


def _announced(request: Request) -> int | None:
    """Content-Length, where there is one. Starlette's Headers take as long as the rest of `read`."""
    for name, value in request.scope["headers"]:
        if name == b"content-length":
            return int(value)
    return None
