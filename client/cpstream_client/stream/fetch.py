"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

A request asks for about REQUEST_BYTES. The next one is sent, on another connection, before the last reply ends; and each can go to
another endpoint, because any replica can answer any request. After a fault the next request starts behind the last batch that
was verified: the plan may be resumed at any `start`, so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..contract.wire import ARROW_STREAM, BatchQuery, split_path, stream_metadata
from ..errors import CpstreamError
from ..transport.asked import Asked
from ..transport.endpoints import Endpoint
from ..transport.retry import Patience
from ..transport.service import Service
from ..transport.sockets import Line
from .course import Course
from .messages import Memory
from .reader import Batch, Expected, read_batches

ASK_AHEAD_BATCHES = 4
"""The next request goes out when this many record batches of the last one are still to come."""
_JOIN_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False)
class _Request:
    """For record batches first to first + count. asked: as soon as it is sent."""

    endpoint: Endpoint
    query: BatchQuery
    first: int
    count: int
    line: Line = field(default_factory=Line)
    asked: Asked | None = None

    @property
    def behind(self) -> int:
        return self.first + self.count

    def send(self, service: Service, split: str) -> Asked:
        path, params = split_path(split, "batches"), self.query.to_params()
        self.asked = service.send(self.endpoint, "GET", path, params, ARROW_STREAM, line=self.line)
        return self.asked

    def abandon(self) -> None:
        """Nobody wants the reply any more."""
        self.line.abort()
        if self.asked is not None:
            self.asked.close()


class EpochFetcher:
    """Iterates over the record batches of a course. For one thread; `abort` may be called from another.

    turn: which of the endpoints to prefer, so that ranks and workers spread over them.
    """

    def __init__(self, service: Service, course: Course, memory: Memory, turn: int = 0) -> None:
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
            while done < len(self._course) and not self._aborted.is_set():
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
        split = self._course.info.split
        request = self._request(done)
        asked = request.send(self._service, split)
        while True:
            self._endpoint = request.endpoint
            has_more = request.behind < len(self._course)
            ask_at = min(ASK_AHEAD_BATCHES, request.count) if has_more else 0
            with asked.reply() as reply:
                batches = read_batches(reply, request.endpoint, self._expected(request), self._rows(request), self._memory)
                for left, batch in zip(range(request.count, 0, -1), batches, strict=True):
                    if left == ask_at:
                        following = self._request(request.behind)
                        asked = following.send(self._service, split)
                        asked.hurry()
                    yield batch
                    del batch
            self._open.remove(request)
            self._service.replicas.worked(request.endpoint)
            if not has_more:
                return
            request = following

    def _rows(self, request: _Request) -> list[int]:
        return self._course.rows(request.first, request.count)

    def _expected(self, request: _Request) -> Expected:
        info, query = self._course.info, request.query
        metadata = stream_metadata(info.split, info.fingerprint, query, sum(self._rows(request)), request.count)
        return Expected(info.embedding_dim, query.dtype, query.columns, metadata)

    def _request(self, first: int) -> _Request:
        query, count = self._course.request(first, self._service.request_bytes)
        request = _Request(self._service.replicas.choose(self._turn), query, first, count)
        self._open.append(request)
        if self._aborted.is_set():
            request.line.abort()
        return request

    def _abandon(self) -> list[_Request]:
        abandoned, self._open = self._open, []
        for request in abandoned:
            request.abandon()
        return abandoned
