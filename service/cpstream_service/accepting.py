"""How connections are accepted: no more than there may be open files for, and of nobody so many that others wait for it.

At the limit of open files asyncio itself logs a traceback for each try to accept.
"""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import select
import socket
import struct
from asyncio import sslproto
from typing import Any

from .crowd import Seldom, crowd_of

logger = logging.getLogger("cpstream.service")

_ENCRYPTED_BYTES = 256 * 1024
_ACCEPTED_A_TICK, _LONG_TICK_S = 32, 0.001
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class _Tls(sslproto.SSLProtocol):
    """asyncio's own, which tells the other end why a handshake failed: it would only close, and a client take that for a fault.

    A chunk is encrypted and handed on a piece at a time: a whole one would leave the processor's cache in between.
    """

    def _on_handshake_complete(self, error):  # type: ignore[no-untyped-def]
        if error is not None:
            self._process_outgoing()  # type: ignore[attr-defined] # OpenSSL has left an alert there
        super()._on_handshake_complete(error)

    def _write_appdata(self, list_of_data):  # type: ignore[no-untyped-def]
        for data in list_of_data:
            view = memoryview(data)
            for at in range(0, len(view), _ENCRYPTED_BYTES):
                super()._write_appdata([view[at : at + _ENCRYPTED_BYTES]])  # type: ignore[list-item]


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, which stops to accept where it cannot, and says once a second why.

    asyncio would try as often as the backlog is long. At the limit of open files each of these tries logs a traceback and begins a
    series of tries of its own a second later: more and more of them, until nothing else is done. One connection is accepted a tick,
    so that idle workers have a share of those that come at once; after a tick as long as those of a busy loop, 32.
    """

    _left_waiting_s = math.inf

    def __init__(self) -> None:
        super().__init__()
        self._full = Seldom()

    def _start_serving(  # type: ignore[no-untyped-def]
        self, protocol_factory, sock, sslcontext=None, server=None, backlog=100, *timeouts
    ) -> None:
        super()._start_serving(protocol_factory, sock, sslcontext, server, 1, *timeouts)  # type: ignore[misc]

    def _accept_connection(  # type: ignore[no-untyped-def]
        self, protocol_factory, sock, sslcontext=None, server=None, backlog=1, *timeouts
    ) -> None:
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        for _ in range(_ACCEPTED_A_TICK if self.time() - self._left_waiting_s > _LONG_TICK_S else 1):
            super()._accept_connection(protocol_factory, sock, sslcontext, server, 1, *timeouts)  # type: ignore[misc]
            may_go_on = sock.fileno() in self._selector.get_map()  # type: ignore[attr-defined]
            if not may_go_on or not waiting.poll(0):
                self._left_waiting_s = math.inf
                return
        self._left_waiting_s = self.time()

    async def _accept_connection2(  # type: ignore[no-untyped-def]
        self, protocol_factory, conn, extra, *arguments, **named
    ) -> None:
        """A client that wears out its connections waits for its own, and is refused when too many of them wait."""
        crowd, peer = crowd_of(self), extra["peername"]
        wait_s = crowd.wait_s(peer[0] if isinstance(peer, tuple) else "?", self.time())
        if wait_s is None:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, of which nothing is left
            conn.close()
            crowd.tell("refused %d connections of clients whose own take each other's places; raise ulimit -n (LimitNOFILE)")
            return
        if wait_s:
            try:
                await asyncio.sleep(wait_s)
            except BaseException:
                conn.close()
                raise
        await super()._accept_connection2(protocol_factory, conn, extra, *arguments, **named)  # type: ignore[misc]

    def _make_ssl_transport(self, *arguments, **named):  # type: ignore[no-untyped-def]
        transport = super()._make_ssl_transport(*arguments, **named)  # type: ignore[misc]
        transport._ssl_protocol.__class__ = _Tls
        return transport

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_MORE_FILES):
            super().call_exception_handler(context)
        elif self._full.count():
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
