"""A reader that stops: a reply of which nothing is taken for stall_timeout_s ends, and what it held is free again.

Progress is what the other end's TCP has acknowledged, not that a send returned: the kernel takes megabytes ahead, and then wakes us
only when a third of them is gone. Who reads slowly makes progress; who reads a byte a second does not look so to TCP, which
announces room again when there is some worth a packet.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios

logger = logging.getLogger("cpstream.service")

_LOOKS = 4
"""In a timeout: it ends at most a quarter late, and the hot path has nothing to do with it."""


class StallWatch:
    """Looks at a connection now and then. turns: how often its buffer became free for more, for which whoever is told counts."""

    def __init__(self, transport: asyncio.Transport, peer: str, timeout_s: float) -> None:
        self.turns = 0
        self.peer = peer
        self._transport, self._timeout_s = transport, timeout_s
        self._seen, self._times = (0, 0, 0), 0
        self._is_tls = transport.get_extra_info("sslcontext") is not None  # such a transport does not count what is encrypted
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s / _LOOKS, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left = self._transport.get_write_buffer_size()
        seen = self.turns, left, unacknowledged(self._transport) if left or self._is_tls else 0
        self._times = self._times + 1 if any(seen[1:]) and seen == self._seen else 0
        self._seen = seen
        if self._times < _LOOKS:
            self._timer = self._loop.call_later(self._timeout_s / _LOOKS, self._look)
            return
        logger.warning(
            "closed a connection of %s, which took nothing of its reply for %g s (--stall-timeout-s): is it a reader that stopped?",
            self.peer,
            self._timeout_s,
        )
        reset(self._transport)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection at once, by a reset: or the kernel would go on holding, and sending, its part of the reply."""
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the kernel holds for the other end. 0 where it does not say."""
    sock = transport.get_extra_info("socket")
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)
