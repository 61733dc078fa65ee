"""What one connection may cost: the head of a request is bounded in bytes, lines and time, a reply that nobody takes in time.

uvicorn's httptools protocol has no such bounds, and at the limit of open files asyncio logs a traceback for each try to accept.
"""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import select
import socket
from asyncio import Transport, sslproto
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network
from typing import Any
from weakref import ref

from httptools import HttpParserError

from .api.forgetting import SENDER
from .batches.pace import PACE, Pace
from .crowd import Seldom, crowd_of
from .proxy_protocol import read_preface
from .stalls import StallWatch, reset, unacknowledged
from .upgrades import HttpOnly

logger = logging.getLogger("cpstream.service")

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers together, as uvicorn's h11 protocol has it."""
MAX_HEAD_LINES = 256
"""Of headers: each is read by Python, and again by whoever looks for one. Clients send ten, proxies some more."""
HEAD_TIMEOUT_S = 60.0
"""For a connection's first request to come, for the rest of a head that has begun, and of a body whose request is answered."""
UNSENT_BYTES = 128 * 1024
"""That the kernel takes ahead for a reader that has not shown that it reads. Later it takes megabytes, and so asks for more less
often."""
_ENCRYPTED_BYTES = 256 * 1024
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)
_ACCEPTED_A_TICK, _LONG_TICK_S = 32, 0.001
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class Connection(HttpOnly):
    """uvicorn's protocol, which closes connections whose heads are too long (431) or take too long, or whose readers stopped."""

    _in_head = _is_refused = False
    _has_certificate = False  # of the client's, that our CA has issued
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _stalls: StallWatch
    _pace: Pace
    _preface: bytes | None = None  # of a trusted proxy's connection, as long as it may go on

    def __init__(self, *args: Any, stall_timeout_s: float, trusted_proxies: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*args, **named)
        self._stall_timeout_s, self._trusted_proxies = stall_timeout_s, trusted_proxies
        self._crowd = crowd_of(self.server_state)
        self._found_by = ref(self)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_certificate = bool(transport.get_extra_info("peercert"))
        peer = self.client[0] if self.client else "?"
        self._stalls = StallWatch(transport, peer, self._stall_timeout_s)
        _limit_unsent(transport, UNSENT_BYTES)
        self._pace = Pace(partial(_limit_unsent, transport, 0))
        if self._trusted_proxies and is_within(peer, self._trusted_proxies):
            self._preface = b""
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        self._crowd.silent.add(peer, self)
        if len(self.connections) > self._crowd.silent.most and self._crowd.silent.make_room(self):
            self._crowd.tell(
                "closed %d connections that asked nothing, as there may be no more than %d; raise ulimit -n (LimitNOFILE)",
                self._crowd.silent.most,
            )

    def is_sending(self) -> bool:
        """Whether a reply may not have reached the other end yet, or not all of it."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return not is_answered or self.transport.get_write_buffer_size() > 0 or unacknowledged(self.transport) > 0

    def reset(self) -> None:
        """Close at once: nothing that was written and has not left does so any more."""
        reset(self.transport)

    def close_if_idle(self) -> bool:
        if self.transport.get_write_buffer_size():  # the rest of a reply
            return False
        self.transport.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.silent.discard(self._stalls.peer, self)
        self._head_done()
        self._stalls.close()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._stalls.turns += 1
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._preface is not None:
            data = self._without_preface(self._preface + data)
            if not data:
                return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self._refuse_head()
        if self.transport.is_closing() or self._is_refused:
            return
        if not self._in_head:
            if self._timer is None and self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
                self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)  # of a body that nobody wanted
            return
        self._head_bytes += len(data)
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LONG)
            self._crowd.tell("closed %d connections whose heads are longer than %d bytes", MAX_HEAD_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) == MAX_HEAD_LINES:
            raise _TooManyLines
        super().on_header(name, value)

    def _refuse_head(self) -> None:
        if self._in_head and len(self.headers) == MAX_HEAD_LINES:
            self._refuse(_TOO_LONG)
            self._crowd.tell("closed %d connections whose heads have more than %d lines", MAX_HEAD_LINES)
        else:
            self._refuse(_NOT_HTTP)
            self._crowd.tell("closed %d connections that did not speak HTTP; is it https, or a scanner?")

    def _refuse(self, reply: bytes) -> None:
        """Answer and close, but keep a client waiting whose heads are refused again and again: what it waits for, others have."""
        self._is_refused = True
        self._head_done()
        self.transport.pause_reading()
        self._timer = self.loop.call_later(self._crowd.refusals.wait_s(self._stalls.peer, self.loop.time()), self._end, reply)

    def _end(self, reply: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:  # or it would be taken for a part of the one before
            self.transport.write(reply)
        self.transport.close()

    def _without_preface(self, data: bytes) -> bytes:
        """What the client itself sent; nothing while the proxy's preface is not whole."""
        try:
            found = read_preface(data)
        except ValueError as error:
            logger.warning("closed a connection of a trusted proxy, %s: %s", self.client, error)
            self.transport.close()
            return b""
        if found is None:
            self._preface = data
            return b""
        self._preface = None
        length, client = found
        if client is not None:
            self._crowd.silent.discard(self._stalls.peer, self)
            self.client, self._stalls.peer = client, client[0]
            self._crowd.silent.add(self._stalls.peer, self)
        return data[length:]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][SENDER] = self._found_by
        self.scope["state"][PACE] = self._pace
        self.scope["state"]["has_certificate"] = self._has_certificate
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._head_done()
        self._crowd.silent.discard(self._stalls.peer, self)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._crowd.starts.start(self._stalls.peer, partial(super()._start_asgi_task, cycle, app), self.loop)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and no other is waiting for its own
            self._crowd.silent.add(self._stalls.peer, self)

    def _head_done(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _TooManyLines(Exception):
    """For httptools, which makes an error of its own of it."""


def _limit_unsent(transport: Transport, nbytes: int) -> None:
    """Have the kernel take no more than that ahead of what it may send, where it can; 0: as much as its buffers hold."""
    with contextlib.suppress(AttributeError, OSError):  # no Linux, or a Unix socket
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, nbytes)


@lru_cache(maxsize=1024)
def is_within(host: str, networks: Sequence[str]) -> bool:
    """Whether an address is one of these, or in one of them."""
    try:
        address = ip_address(host)
    except ValueError:  # a Unix socket
        return False
    return any((getattr(address, "ipv4_mapped", None) or address) in ip_network(network) for network in networks)


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
