"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

A request asks for about REQUEST_BYTES. The next one is sent, on another connection, before the last reply ends; and each can go to
another endpoint, because any replica can answer any request. After a fault the next request starts behind the last batch that
was verified: the plan may be resumed at any `start`, so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .buffers import BufferPool
from .connection import Connection, Endpoint
from .errors import CpstreamError
from .plan import Plan
from .reader import Batch, Expected, read_batches
from .retry import Patience, Retry
from .wire import ARROW_STREAM, BatchQuery, SplitInfo, split_path, stream_metadata

REQUEST_BYTES = 64 * 1024**2
"""Of one request: bounds what a fault, a drain or a stall can cost, and costs nothing measurable itself."""
WIRE_BATCH_BYTES = 2 * 1024**2
"""Of one record batch, made of as many training batches as fit: each costs about 50 microseconds to parse."""
ASK_AHEAD_BATCHES = 4
"""The next request goes out when this many record batches of the last one are still to come."""


@dataclass(frozen=True, slots=True)
class Service:
    """How to reach a service: its replicas, and how patient to be. Picklable; opens nothing."""

    endpoints: tuple[Endpoint, ...]
    token: str | None = None
    timeout_s: float = 30.0
    retry: Retry = field(default_factory=Retry)

    @classmethod
    def at(
        cls, url: str | Sequence[str], token: str | None = None, timeout_s: float = 30.0, retry: Retry | None = None
    ) -> "Service":
        """Raises ValueError for a malformed url."""
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("url is an empty list; it must name at least one endpoint, like http://data:8000")
        return cls(tuple(Endpoint.parse(each) for each in urls), token, timeout_s, retry or Retry())

    def connect(self, turn: int) -> Connection:
        """A connection, not opened yet, to the endpoint whose turn it is."""
        return Connection(self.endpoints[turn % len(self.endpoints)], self.token, self.timeout_s)


class Course:
    """What to ask for: one DataLoader worker's share of a query, cut into record batches. Pure arithmetic.

    With one worker a record batch holds several training batches, with more exactly one, because the next belongs to
    another worker.
    """

    def __init__(self, query: BatchQuery, info: SplitInfo) -> None:
        self.info = info
        n = info.num_samples
        row_bytes = info.embedding_dim * (2 if query.dtype == "float16" else 4) + 12
        training = query.plan(n)
        self.num_steps = len(query.steps(n))  # of this worker, in training batches
        self.batch_size = query.batch_size
        per_record = max(1, WIRE_BATCH_BYTES // (query.batch_size * row_bytes)) if query.num_workers == 1 else 1
        # A ragged end is cut off here; the service need not know of it.
        self._query = replace(
            query,
            batch_size=query.batch_size * per_record,
            drop_last=False,
            limit=None,
            fingerprint=info.fingerprint,
        )
        self._wire: Plan = self._query.plan(n)
        if query.num_workers == 1:
            self.num_rows = min(training.num_samples, self.num_steps * query.batch_size)
            self._steps = range(-(-self.num_rows // self._wire.batch_size))
        else:
            self._steps = query.steps(n)
            self.num_rows = sum(len(range(*training.step_bounds(step))) for step in self._steps[-1:])
            self.num_rows += max(0, len(self._steps) - 1) * query.batch_size
        self._per_request = max(1, REQUEST_BYTES // (self._wire.batch_size * row_bytes))

    def __len__(self) -> int:
        """Record batches to fetch in all."""
        return len(self._steps)

    def empty_batch(self) -> Batch:
        """What a short rank's last step yields with remainder "exact". embeddings (0, D), cps (0,)."""
        columns, dim = self._query.columns, self.info.embedding_dim
        return Batch(
            np.empty((0, dim), self._query.dtype) if "embedding" in columns else None,
            np.empty(0, np.float32) if "cps" in columns else None,
            np.empty(0, np.int64) if "index" in columns else None,
            [] if "file_path" in columns else None,
            0,
            0,
        )

    def rows(self, first: int, count: int) -> list[int]:
        """How many samples each of these record batches holds."""
        return [len(range(*self._wire.step_bounds(step))) for step in self._steps[first : first + count]]

    def request(self, first: int) -> tuple[BatchQuery, int]:
        """The query for the record batches from the `first` on, and how many of them its reply holds."""
        count = min(self._per_request, len(self) - first)
        start = self._wire.start_after(self._steps[first])
        return replace(self._query, start=start, worker=0, limit=count), count


@dataclass(slots=True)
class _Request:
    connection: Connection
    query: BatchQuery
    first: int
    count: int


class EpochFetcher:
    """Iterates over the record batches of a course. For one thread; `abort` may be called from another."""

    def __init__(
        self, service: Service, course: Course, pool: BufferPool, turn: int = 0, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._service, self._course, self._pool, self._turn, self._sleep = service, course, pool, turn, sleep
        self._idle: list[Connection] = []
        self._open: list[Connection] = []
        self._aborted = False

    def __iter__(self) -> Iterator[Batch]:
        """Raises TransportError or UnavailableError when patience ends, other ServiceErrors at once."""
        patience = Patience(self._service.retry, len(self._service.endpoints))
        done = 0
        try:
            while done < len(self._course):
                try:
                    for batch in self._from(done):
                        yield batch
                        del batch
                        done += 1
                        patience.progress()
                except CpstreamError as error:
                    self._close()
                    if self._aborted:
                        return
                    wait_s = patience.wait_s(error)
                    self._turn += 1
                    if wait_s:
                        self._sleep(wait_s)
        finally:
            self._close()

    def abort(self) -> None:
        """End the iteration from another thread, even while it waits for bytes."""
        self._aborted = True
        for connection in self._open:
            connection.abort()

    def _from(self, done: int) -> Iterator[Batch]:
        """Record batches from `done` to the end of the course; ends with the first error."""
        request: _Request | None = self._ask(done)
        while request is not None:
            response = request.connection.receive(ARROW_STREAM)
            following: _Request | None = None
            behind = request.first + request.count
            rows = self._course.rows(request.first, request.count)
            info, query = self._course.info, request.query
            expected = Expected(
                info.embedding_dim,
                query.dtype,
                query.columns,
                stream_metadata(info.split, info.fingerprint, query, sum(rows), request.count),
            )
            for left, batch in zip(
                range(request.count, 0, -1),
                read_batches(response, expected, iter(rows), self._pool, request.connection.url),
                strict=True,
            ):
                if left == min(ASK_AHEAD_BATCHES, request.count) and behind < len(self._course):
                    following = self._ask(behind)
                yield batch
                del batch
            request.connection.release()
            self._idle.append(request.connection)
            request = following

    def _ask(self, first: int) -> _Request:
        query, count = self._course.request(first)
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = self._service.connect(self._turn)
            self._open.append(connection)
        connection.send("GET", split_path(self._course.info.split, "batches"), query.to_params(), ARROW_STREAM)
        return _Request(connection, query, first, count)

    def _close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()


def cut(batches: Iterator[Batch], course: Course) -> Iterator[Batch]:
    """Training batches as views of record batches; a batch never spans two of them.

    Every step yields one: the last may be short, and with remainder "exact" empty.
    """
    steps, rows = course.num_steps, course.num_rows
    for batch in batches:
        for low in range(0, min(batch.num_rows, rows), course.batch_size):
            yield batch.slice(low, min(low + course.batch_size, rows))
            steps -= 1
        rows -= batch.num_rows
        del batch
    if steps:
        yield course.empty_batch()
