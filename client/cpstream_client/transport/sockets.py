"""Reads HTTP replies from a socket with as few wake-ups as there can be.

http.client reads through Python's SocketIO: a call of Python code and a race for the GIL for every few ten kilobytes that have
arrived. Here the kernel is asked to wait until a whole piece is there (MSG_WAITALL), and puts it straight where it shall be.
"""

import http.client
import io
import socket
import ssl
import struct
import sys
import threading
from typing import Any

_HEAD_BYTES = 8192
_RTT_AT = 68
"""Where Linux' struct tcp_info has tcpi_rtt, microseconds."""


def set_timeout(sock: socket.socket, receive_s: float, send_s: float) -> None:
    """Have every send and receive end after so long without a byte, by the kernel where that is possible.

    With Python's own timeouts the socket does not block, and MSG_WAITALL would do nothing.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(receive_s)
        return
    sock.settimeout(None)
    for option, timeout_s in ((socket.SO_RCVTIMEO, receive_s), (socket.SO_SNDTIMEO, send_s)):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6)))


def round_trip_s(sock: socket.socket, elapsed_s: float) -> float:
    """How long a packet takes there and back, of a connection that has just been made in elapsed_s.

    By the kernel where it says so: its clock counts no name server and no TLS, nor how long this process waits for a CPU.
    """
    if sys.platform != "linux":
        return elapsed_s
    try:
        information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    except OSError:  # it is not TCP
        return elapsed_s
    microseconds: int = struct.unpack_from("@I", information, _RTT_AT)[0]
    return microseconds / 1e6


class Line:
    """Where a request waits for its reply, so that another thread can wake the one that waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._aborted = False

    def connect(self, sock: socket.socket) -> None:
        """For the transport: the socket on which the reply will come."""
        with self._lock:
            self._sock = sock
            if self._aborted:  # while it was being opened, when there was no socket yet to shut down
                self._shut_down()

    def disconnect(self) -> bool:
        """For the transport: the reply is over. Whether the socket may carry another one: it may not once it was shut down."""
        with self._lock:
            self._sock = None
            return not self._aborted

    def abort(self) -> None:
        """Wake the thread that waits for bytes, or soon will; it gets an error."""
        with self._lock:
            self._aborted = True
            self._shut_down()

    def _shut_down(self, how: int = socket.SHUT_RDWR) -> None:
        # Without globals: a loop that the end of the interpreter leaves comes here when there are none any more.
        try:
            if self._sock is not None:
                self._sock.shutdown(how)
        except OSError:  # the peer was faster
            pass


class Response(http.client.HTTPResponse):
    """http.client's reply, with a way to its body that passes fewer layers. Closing it leaves the socket open."""

    def __init__(self, sock: socket.socket, method: str) -> None:
        super().__init__(_Source(sock), method=method)  # type: ignore[arg-type] # all that it wants of a socket is makefile


class _Source(io.RawIOBase):
    """What BufferedReader reads from: small reads through its buffer, those of more than a buffer straight from here."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._wait_all = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _HEAD_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        # A head is shorter than the buffer, and waiting to fill that would be waiting for ever.
        flags = self._wait_all if len(buffer) > _HEAD_BYTES else 0
        try:
            return self._sock.recv_into(buffer, 0, flags)
        except BlockingIOError:  # how the kernel's own timeout ends
            raise TimeoutError("timed out") from None
