"""How much one connection is given at once: little, until its reader has shown that it reads, as TCP itself begins.

What is gathered for a reader that stops is held until it is let go, and its gathering is time that others wait for. So a new
connection gets FIRST_BYTES, and twice as much each time that it took them, up to whole chunks.
"""

from collections.abc import Callable

from .gather import CHUNK_BYTES

FIRST_BYTES = 256 * 1024
PACE = "pace"
"""Where in a request's state its connection's is, if the server keeps one."""


class Pace:
    """Of one connection. chunk_bytes: what may be written to it at once. proven: called when that has become a whole chunk."""

    def __init__(self, proven: Callable[[], None]) -> None:
        self.chunk_bytes = FIRST_BYTES
        self._sent, self._proven = 0, proven

    def sent(self, nbytes: int) -> None:
        self._sent += nbytes

    def taken(self) -> None:
        """All that was sent is on its way to the reader, but for what its kernel and ours hold."""
        if self._sent < self.chunk_bytes or self.chunk_bytes == CHUNK_BYTES:
            return
        self._sent, self.chunk_bytes = 0, min(2 * self.chunk_bytes, CHUNK_BYTES)
        if self.chunk_bytes == CHUNK_BYTES:
            self._proven()
