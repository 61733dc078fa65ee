"""What one connection may cost: the head of a request is bounded in bytes, lines and time, a reply that nobody takes in time.

uvicorn's httptools protocol has no such bounds. How connections are accepted: accepting.py.
"""

import asyncio
import contextlib
import logging
import socket
from asyncio import Transport
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network
from typing import Any
from weakref import ref

from httptools import HttpParserError

from .api.forgetting import SENDER
from .batches.pace import PACE, Pace
from .crowd import crowd_of
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
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)


class Connection(HttpOnly):
    """uvicorn's protocol, which closes connections whose heads are too long (431) or take too long, or whose readers stopped."""

    _in_head = _is_refused = False
    _has_certificate = False  # of the client's, that our CA has issued
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _stalls: StallWatch
    _pace: Pace
    _answering: Any = None  # the request that is being answered, or was last
    _preface: bytes | None = None  # of a trusted proxy's connection, as long as it may go on

    def __init__(self, *args: Any, stall_timeout_s: float, trusted_proxies: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*args, **named)
        self._stall_timeout_s, self._trusted_proxies = stall_timeout_s, trusted_proxies
        self._crowd = crowd_of(self.loop)
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
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
        self._crowd.silent.add(peer, self)
        if self._crowd.is_full() and self._crowd.silent.make_room(self):
            self._crowd.tell(
                "closed %d connections that asked nothing, as there may be no more than %d; raise ulimit -n (LimitNOFILE)",
                self._crowd.silent.most,
            )
        self._crowd.count += 1

    def is_sending(self) -> bool:
        """Whether a reply may not have reached the other end yet, or not all of it."""
        return not self._is_answered() or self.transport.get_write_buffer_size() > 0 or unacknowledged(self.transport) > 0

    def reset(self) -> None:
        """Close at once: nothing that was written and has not left does so any more."""
        reset(self.transport)

    def close_if_idle(self) -> bool:
        if self.transport.get_write_buffer_size():  # the rest of a reply
            return False
        self.transport.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.count -= 1
        self._crowd.silent.discard(self._stalls.peer, self)
        self._head_done()
        self._stalls.close()
        # uvicorn tells only the last of several requests, which is not the one that is being answered.
        for cycle in filter(None, (self._answering, *(cycle for cycle, _ in self.pipeline))):
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
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
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
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
        if self._is_answered():  # or it would be taken for a part of the one before
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
        self._answering = cycle
        self._crowd.starts.start(self._stalls.peer, partial(super()._start_asgi_task, cycle, app), self.loop)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and no other is waiting for its own
            self._crowd.silent.add(self._stalls.peer, self)

    def _is_answered(self) -> bool:
        """Whether all that was asked for is."""
        return self.cycle is None or self.cycle.response_complete

    def _head_is_late(self) -> None:
        if self._is_answered():
            self.transport.close()
        else:  # behind two requests nothing is read until the first is answered
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

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
