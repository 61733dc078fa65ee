"""What a token may be sent, in bytes a second: its replies go out at that pace, and a further one has to wait."""

import asyncio
import math

from starlette.types import Message, Send

from ..batches.limits import Moment
from ..errors import TooManyBytes
from ..tokens import Token

SAVED_S = 1.0
"""What a token did not use in the last second, it may use at once."""
MOST_AHEAD_S = 1.0
"""A reply begins unless the others of its token take for longer."""


class Allowance:
    """Of one token, for all its replies. Chunks go out in the order in which they came, each after its own time.

    free: from when on the next one may go; workers that share it share the allowance. Times are of time.monotonic().
    """

    def __init__(self, free: Moment | None = None) -> None:
        self._free = free or Moment()

    def check(self, token: Token, now_s: float) -> None:
        """Raises TooManyBytes where a reply would have to wait for long before it begins."""
        ahead_s = self._free.at_s - now_s
        if ahead_s > MOST_AHEAD_S:
            raise TooManyBytes(
                f"token {token.name} is being sent as much as it may ({token.max_bytes_per_s} bytes a second); "
                f"ask again in {math.ceil(ahead_s)} s",
                headers={"Retry-After": str(math.ceil(ahead_s))},
            )

    def delay_s(self, nbytes: int, max_bytes_per_s: int, now_s: float) -> float:
        """How long these bytes must wait. They are then counted as sent."""
        with self._free.alone():
            begin_s = max(self._free.at_s, now_s - SAVED_S)
            self._free.at_s = begin_s + nbytes / max_bytes_per_s
        return max(0.0, begin_s - now_s)

    def paced(self, send: Send, max_bytes_per_s: int) -> Send:
        """The same channel, at that pace."""
        loop = asyncio.get_running_loop()

        async def send_in_time(message: Message) -> None:
            nbytes = len(message.get("body", b""))
            if nbytes:
                delay_s = self.delay_s(nbytes, max_bytes_per_s, loop.time())
                if delay_s:
                    await asyncio.sleep(delay_s)
            await send(message)

        return send_in_time
