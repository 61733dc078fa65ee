"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

A request asks for about REQUEST_BYTES. The next one is sent, on another connection, before the last reply ends; and each can go to
another endpoint, because any replica can answer any request. After a fault the next request starts behind the last batch that
was verified: the plan may be resumed at any `start`, so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ..contract.wire import ARROW_STREAM, BatchQuery, split_path, stream_metadata
from ..errors import CpstreamError, TransportError
from ..transport.connection import Connection
from ..transport.endpoints import Endpoint
from ..transport.retry import Patience
from ..transport.service import Service
from .course import Course
from .messages import Memory
from .reader import Batch, Expected, read_batches

ASK_AHEAD_BATCHES = 4
"""The next request goes out when this many record batches of the last one are still to come."""


@dataclass(slots=True)
class _Request:
    connection: Connection
    query: BatchQuery
    first: int
    count: int

    @property
    def behind(self) -> int:
        return self.first + self.count


class EpochFetcher:
    """Iterates over the record batches of a course. For one thread; `abort` may be called from another.

    turn: which of the endpoints to prefer, so that ranks and workers spread over them.
    """

    def __init__(self, service: Service, course: Course, memory: Memory, turn: int = 0) -> None:
        self._service, self._course, self._memory, self._turn = service, course, memory, turn
        self._endpoint = service.replicas.choose(turn)
        self._idle: dict[Endpoint, Connection] = {}
        self._open: list[Connection] = []
        self._aborted = threading.Event()

    def __iter__(self) -> Iterator[Batch]:
        """Raises TransportError or UnavailableError when patience ends, other ServiceErrors at once."""
        patience = Patience(self._service.retry, len(self._service.endpoints))
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
                    self._close()
                    if self._aborted.is_set():
                        return
                    self._service.replicas.failed(self._endpoint)
                    self._aborted.wait(patience.wait_s(error, self._endpoint.url))
        finally:
            self._close()

    def abort(self) -> None:
        """End the iteration from another thread, even while it waits for bytes or for its next try."""
        self._aborted.set()
        for connection in self._open:
            connection.abort()

    def _from(self, done: int) -> Iterator[Batch]:
        """Record batches from `done` to the end of the course; ends with the first error, which is self._endpoint's."""
        request = self._ask(done)
        while True:
            connection = request.connection
            self._endpoint = connection.endpoint
            response = connection.receive(ARROW_STREAM)
            following: _Request | None = None
            has_more = request.behind < len(self._course)
            batches = read_batches(connection, response, self._expected(request), self._rows(request), self._memory)
            for left, batch in zip(range(request.count, 0, -1), batches, strict=True):
                if has_more and left == min(ASK_AHEAD_BATCHES, request.count):
                    following = self._ask_ahead(request.behind)
                yield batch
                del batch
            connection.release()
            self._idle[connection.endpoint] = connection
            if following is not None or not has_more:  # else it finished this reply, but takes no more requests
                self._service.replicas.worked(connection.endpoint)
            if not has_more:
                return
            request = following or self._ask(request.behind)

    def _rows(self, request: _Request) -> list[int]:
        return self._course.rows(request.first, request.count)

    def _expected(self, request: _Request) -> Expected:
        info, query = self._course.info, request.query
        metadata = stream_metadata(info.split, info.fingerprint, query, sum(self._rows(request)), request.count)
        return Expected(info.embedding_dim, query.dtype, query.columns, metadata)

    def _ask_ahead(self, first: int) -> _Request | None:
        """The next request, or None when it cannot be sent: what the last reply still holds is worth having first."""
        endpoint = self._endpoint
        try:
            return self._ask(first)
        except TransportError:
            self._service.replicas.failed(self._endpoint)
            return None
        finally:
            self._endpoint = endpoint

    def _ask(self, first: int) -> _Request:
        query, count = self._course.request(first, self._service.request_bytes)
        self._endpoint = self._service.replicas.choose(self._turn)
        connection = self._idle.pop(self._endpoint, None)
        if connection is None:
            connection = self._service.connection(self._endpoint)
            self._open.append(connection)
        connection.send("GET", split_path(self._course.info.split, "batches"), query.to_params(), ARROW_STREAM)
        if self._aborted.is_set():  # while it was being opened, when there was no socket yet to shut down
            connection.abort()
        return _Request(connection, query, first, count)

    def _close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
