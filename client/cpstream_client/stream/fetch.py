"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

Where one connection is enough, requests of about REQUEST_BYTES follow each other, the next sent, on another connection, before the
last reply ends; where the path needs more, see lanes.py. Each request can go to another endpoint, because any replica can answer
any request. After a fault the next request starts behind the last batch that was verified: the plan may be resumed at any `start`,
so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import os
import threading
from collections.abc import Iterator

from ..errors import CpstreamError
from ..transport.pace import FIRST_RECORD_BYTES
from ..transport.retry import Patience
from ..transport.service import Service
from .backlog import Backlog
from .course import Ask, Asking
from .early import Early
from .lanes import Flow, Lanes
from .messages import Memory
from .reader import Batch
from .request import Request

ASK_AHEAD_BATCHES = 4
"""The next request goes out when this many record batches of the last one are still to come."""
_ASK_AHEAD_BYTES = 16 * 1024**2
"""And on a long path so many bytes: while one connection brings them, the other becomes as fast."""
_FIRST_BYTES = 8 * 1024**2
"""Of a long path's first request, whose record batches are small."""
_JOIN_TIMEOUT_S = 2.0


class EpochFetcher:
    """Iterates over the record batches of a course. For one thread; `abort` may be called from another.

    turn: which of the endpoints to prefer, so that ranks and workers spread over them. backlog: what the consumer has not used yet.
    max_connections: fewer than the service's own, or None. workers: processes of the service.
    early: the first request, if it has been sent already.
    """

    def __init__(
        self,
        service: Service,
        course: Asking,
        memory: Memory,
        turn: int = 0,
        backlog: Backlog | None = None,
        max_connections: int | None = None,
        workers: int = 1,
        early: Early | None = None,
    ) -> None:
        self._service, self._course, self._memory, self._turn = service, course, memory, turn
        self._early = early
        self._backlog = backlog or Backlog()
        self._max_connections = max_connections or service.pace.max_connections
        self._workers = workers
        self._endpoint = service.replicas.choose(turn)
        self._open: list[Request] = []
        self._lanes: Lanes | None = None
        self._aborted = threading.Event()
        self._owner = os.getpid()
        self.flow = Flow()

    def __iter__(self) -> Iterator[Batch]:
        """Raises TransportError or UnavailableError when patience ends, other ServiceErrors at once."""
        replicas = self._service.replicas
        patience = Patience(self._service.retry, len(replicas), is_contact=not replicas.met)
        done = 0
        try:
            while not self._aborted.is_set() and self._course.more(done):
                if self._is_wide():
                    yield from self._by_lanes(done)
                    return
                try:
                    for per_record, batch in self._from(done):
                        yield batch
                        del batch
                        done += per_record
                        patience.progress()
                except CpstreamError as error:
                    self._abandon()
                    if self._aborted.is_set():
                        return
                    self.flow.faults += 1
                    replicas.failed(self._endpoint)
                    self._aborted.wait(patience.wait_s(error, self._endpoint.url))
        finally:
            if os.getpid() == self._owner:  # a forked process has the parent's connections
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
        lanes = self._lanes
        if lanes is not None:
            lanes.abort()

    def _is_wide(self) -> bool:
        """Whether the path needs more than one connection."""
        round_trip_s = self._service.round_trip_s(self._endpoint)
        return min(self._service.pace.needed(round_trip_s, self._workers), self._max_connections) > 1

    def _is_far(self) -> bool:
        return self._service.pace.is_far(self._service.round_trip_s(self._endpoint))

    def _ask_ahead(self, ask: Ask) -> int:
        """How many record batches before its end the next request goes out."""
        if not self._is_far():
            return ASK_AHEAD_BATCHES
        return max(ASK_AHEAD_BATCHES, min(ask.count // 2, _ASK_AHEAD_BYTES * ask.count // max(1, ask.nbytes)))

    def _by_lanes(self, done: int) -> Iterator[Batch]:
        lanes = self._lanes = Lanes(
            self._service,
            self._course,
            self._memory,
            self._turn,
            self._backlog,
            self._max_connections,
            self._workers,
            self.flow,
            self._early,
        )
        if self._aborted.is_set():
            return
        yield from lanes.batches(done)

    def _from(self, done: int) -> Iterator[tuple[int, Batch]]:
        """Record batches from the training batch `done` on, each with the number of training batches in it.

        To the end of the course, or until the path turns out to need more connections than one; ends with the first error, which
        is self._endpoint's.
        """
        request = self._send(done)
        while request is not None:
            self._endpoint, ask = request.endpoint, request.ask
            following: Request | None = None
            with request.reply() as reply:
                is_wide = self._is_wide()
                batches, ahead = ask.read(reply, request.endpoint, self._memory), self._ask_ahead(ask)
                for left, batch in zip(range(ask.count, 0, -1), batches, strict=True):
                    if following is None and left <= ahead and not is_wide:
                        following = self._send(ask.behind())
                        if following is not None:
                            following.hurry()
                    self.flow.nbytes += batch.nbytes
                    yield ask.per_record, batch
                    del batch
            self._open.remove(request)
            self._service.replicas.worked(request.endpoint)
            if is_wide:
                return
            if following is None and self._course.more(ask.behind()):
                following = self._send(ask.behind())
            request = following

    def _send(self, first: int) -> Request | None:
        """Send the request for what can be asked for by now, from the training batch `first` on."""
        nbytes, record_bytes = self._service.request_bytes, 0
        if not self.flow.requests and self._is_far():
            nbytes, record_bytes = min(nbytes, _FIRST_BYTES), FIRST_RECORD_BYTES
        ask = self._course.ask(first, nbytes, record_bytes)
        if ask is None:
            return None
        request = self._sent_early(first) or Request(self._service.replicas.choose(self._turn), ask)
        self._open.append(request)
        self.flow.requests += 1
        self.flow.connections = max(self.flow.connections, 1)
        if self._aborted.is_set():
            request.line.abort()
        if request.asked is None:
            request.send(self._service)
        return request

    def _sent_early(self, first: int) -> Request | None:
        early, self._early = self._early, None
        ask = None if early is None else self._course.ask(first, 1, FIRST_RECORD_BYTES)
        return None if early is None or ask is None else early.take(ask)

    def _abandon(self) -> list[Request]:
        abandoned, self._open = self._open, []
        for request in abandoned:
            request.abandon()
        return abandoned
