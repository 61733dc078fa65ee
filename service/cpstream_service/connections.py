"""What one connection may cost: the head of a request is bounded in bytes and in time, a reply that nobody takes in time.

uvicorn's httptools protocol has no such bounds, and at the limit of open files asyncio logs a traceback for each try to accept.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import time
from asyncio import Transport
from typing import Any

from .stalls import StallWatch
from .upgrades import HttpOnly

logger = logging.getLogger("cpstream.service")

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers together, as uvicorn's h11 protocol has it."""
HEAD_TIMEOUT_S = 60.0
"""For a connection's first request to come, and for the rest of a head that has begun."""
_LOG_EVERY_S = 1.0
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class Connection(HttpOnly):
    """uvicorn's protocol, which closes connections whose heads are too long (431) or take too long, or whose readers stopped."""

    _in_head = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _stalls: StallWatch

    def __init__(self, *args: Any, stall_timeout_s: float, **named: Any) -> None:
        super().__init__(*args, **named)
        self._stall_timeout_s = stall_timeout_s

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stalls = StallWatch(transport, self.client[0] if self.client else "?", self._stall_timeout_s)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self._stalls.close()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._stalls.turns += 1
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
            logger.warning("closed a connection whose head is longer than %d bytes", MAX_HEAD_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._head_done()
        super().on_headers_complete()

    def _head_done(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, which accepts one connection a tick and says once a second why it cannot.

    asyncio would try as often as the backlog is long. At the limit of open files each of these tries logs a traceback and begins a
    series of tries of its own a second later: more and more of them, until nothing else is done.
    """

    _said_s = -_LOG_EVERY_S

    def _start_serving(  # type: ignore[no-untyped-def]
        self, protocol_factory, sock, sslcontext=None, server=None, backlog=100, *timeouts
    ) -> None:
        super()._start_serving(protocol_factory, sock, sslcontext, server, 1, *timeouts)  # type: ignore[misc]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_MORE_FILES):
            super().call_exception_handler(context)
        elif time.monotonic() - self._said_s >= _LOG_EVERY_S:
            self._said_s = time.monotonic()
            logger.error(
                "cannot accept connections: %s; new ones wait until others close; raise ulimit -n (LimitNOFILE, now %d)",
                error.strerror,
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files to the hard one, for this process and its workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a hard limit of "unlimited" is more than some kernels take
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
