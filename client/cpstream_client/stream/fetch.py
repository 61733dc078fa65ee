"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

A request asks for about REQUEST_BYTES. The next one is sent, on another connection, before the last reply ends; and each can go to
another endpoint, because any replica can answer any request. After a fault the next request starts behind the last batch that
was verified: the plan may be resumed at any `start`, so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..contract.wire import ARROW_STREAM
from ..errors import CpstreamError
from ..transport.asked import Asked
from ..transport.endpoints import Endpoint
from ..transport.replies import Reply
from ..transport.retry import Patience
from ..transport.service import Service
from ..transport.sockets import Line
from .course import Ask, Asking
from .messages import Memory
from .reader import Batch

ASK_AHEAD_BATCHES = 4
"""The next request goes out when this many record batches of the last one are still to come."""
_JOIN_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False)
class _Request:
    """asked: as soon as it is sent."""

    endpoint: Endpoint
    ask: Ask
    line: Line = field(default_factory=Line)
    asked: Asked | None = None

    @property
    def behind(self) -> int:
        return self.ask.first + self.ask.count

    def send(self, service: Service) -> None:
        ask = self.ask
        self.asked = service.send(
            self.endpoint, ask.method, ask.path, ask.params, ARROW_STREAM, ask.body, ask.content_type, self.line
        )

    def hurry(self) -> None:
        if self.asked is not None:
            self.asked.hurry()

    def reply(self) -> Reply:
        assert self.asked is not None  # noqa: S101 - it has been sent
        return self.asked.reply()

    def abandon(self) -> None:
        """Nobody wants the reply any more."""
        self.line.abort()
        if self.asked is not None:
            self.asked.close()


class EpochFetcher:
    """Iterates over the record batches of a course. For one thread; `abort` may be called from another.

    turn: which of the endpoints to prefer, so that ranks and workers spread over them.
    """

    def __init__(self, service: Service, course: Asking, memory: Memory, turn: int = 0) -> None:
        self._service, self._course, self._memory, self._turn = service, course, memory, turn
        self._endpoint = service.replicas.choose(turn)
        self._open: list[_Request] = []
        self._aborted = threading.Event()

    def __iter__(self) -> Iterator[Batch]:
        """Raises TransportError or UnavailableError when patience ends, other ServiceErrors at once."""
        replicas = self._service.replicas
        patience = Patience(self._service.retry, len(replicas), is_contact=not replicas.met)
        done = 0
        try:
            while not self._aborted.is_set() and self._course.more(done):
                try:
                    for batch in self._from(done):
                        yield batch
                        del batch
                        done += 1
                        patience.progress()
                except CpstreamError as error:
                    self._abandon()
                    if self._aborted.is_set():
                        return
                    replicas.failed(self._endpoint)
                    self._aborted.wait(patience.wait_s(error, self._endpoint.url))
        finally:
            for request in self._abandon():
                if request.asked is not None:
                    request.asked.join(_JOIN_TIMEOUT_S)

    def abort(self) -> None:
        """End the iteration from another thread, even while it waits for bytes or for its next try.

        At once over our own transport; over another, when that has something to say or its timeout is over.
        """
        self._aborted.set()
        for request in list(self._open):
            request.line.abort()

    def _from(self, done: int) -> Iterator[Batch]:
        """Record batches from `done` to the end of the course; ends with the first error, which is self._endpoint's."""
        request = self._send(done)
        while request is not None:
            self._endpoint, count = request.endpoint, request.ask.count
            following: _Request | None = None
            with request.reply() as reply:
                batches = request.ask.read(reply, request.endpoint, self._memory)
                for left, batch in zip(range(count, 0, -1), batches, strict=True):
                    if following is None and left <= ASK_AHEAD_BATCHES:
                        following = self._send(request.behind)
                        if following is not None:
                            following.hurry()
                    yield batch
                    del batch
            self._open.remove(request)
            self._service.replicas.worked(request.endpoint)
            if following is None and self._course.more(request.behind):
                following = self._send(request.behind)
            request = following

    def _send(self, first: int) -> _Request | None:
        """Send the request for what can be asked for by now, from the record batch `first` on."""
        ask = self._course.ask(first, self._service.request_bytes)
        if ask is None:
            return None
        request = _Request(self._service.replicas.choose(self._turn), ask)
        self._open.append(request)
        if self._aborted.is_set():
            request.line.abort()
        request.send(self._service)
        return request

    def _abandon(self) -> list[_Request]:
        abandoned, self._open = self._open, []
        for request in abandoned:
            request.abandon()
        return abandoned
