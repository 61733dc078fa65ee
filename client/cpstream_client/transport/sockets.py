"""Reads HTTP replies from a socket with as few wake-ups as there can be.

http.client reads through Python's SocketIO: a call of Python code and a race for the GIL for every few ten kilobytes that have
arrived. Here the kernel is asked to wait until a whole piece is there (MSG_WAITALL), and puts it straight where it shall be.
"""

import http.client
import io
import socket
import ssl
import struct
from typing import Any

_HEAD_BYTES = 8192


def set_timeout(sock: socket.socket, timeout_s: float) -> None:
    """Have every send and receive end after this long without a byte, by the kernel where that is possible.

    With Python's own timeouts the socket does not block, and MSG_WAITALL would do nothing.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(timeout_s)
        return
    sock.settimeout(None)
    timeval = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


class Response(http.client.HTTPResponse):
    """http.client's reply, with a way to its body that passes fewer layers."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Raw(sock, self.fp), _HEAD_BYTES)

    def fill(self, buffer: memoryview) -> None:
        """Read as many bytes of the body as the buffer holds, of which there must be so many. Raises OSError, TimeoutError."""
        got = self.fp.readinto(buffer)
        if got != len(buffer):
            raise ConnectionError("the connection ended before the reply did")
        assert self.length is not None  # noqa: S101 - whoever fills knows that there are so many bytes
        self.length -= got


class _Raw(io.RawIOBase):
    """What BufferedReader reads from: small reads through its buffer, those of more than a buffer straight from here."""

    def __init__(self, sock: socket.socket, file: io.BufferedIOBase) -> None:
        self._sock = sock
        # http.client closes the socket at the head of a reply with "Connection: close"; this keeps it open for the body.
        self._file = file
        self._wait_all = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        super().close()
        self._file.close()

    def readinto(self, buffer: Any, /) -> int:
        # A head is shorter than the buffer, and waiting to fill that would be waiting for ever.
        flags = self._wait_all if len(buffer) > _HEAD_BYTES else 0
        try:
            return self._sock.recv_into(buffer, 0, flags)
        except BlockingIOError:  # how the kernel's own timeout ends
            raise TimeoutError("timed out") from None
