"""An epoch as a sequence of bounded requests, continued at the exact next sample after any fault.

A request asks for about REQUEST_BYTES. The next one is sent, on another connection, before the last reply ends; and each can go to
another endpoint, because any replica can answer any request. After a fault the next request starts behind the last batch that
was verified: the plan may be resumed at any `start`, so nothing is lost, repeated or fetched twice but the batch in flight.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .buffers import BufferPool
from .connection import Connection
from .errors import CpstreamError, TransportError
from .plan import Plan
from .reader import Batch, Expected, read_batches
from .replicas import Endpoint, Replicas
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

    replicas: Replicas
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    retry: Retry = field(default_factory=Retry)
    request_bytes: int = REQUEST_BYTES

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be more than 0 seconds")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("the token has a line break or another character that no HTTP header can carry")

    @classmethod
    def at(
        cls, url: str | Sequence[str], token: str | None = None, timeout_s: float = 30.0, retry: Retry | None = None
    ) -> "Service":
        """Raises ValueError for a malformed url or a value out of range."""
        urls = [url] if isinstance(url, str) else list(dict.fromkeys(url))
        if not urls:
            raise ValueError("url is an empty list; it must name at least one endpoint, like http://data:8000")
        return cls(Replicas(tuple(Endpoint.parse(each) for each in urls)), token, timeout_s, retry or Retry())

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.replicas.endpoints

    def connection(self, endpoint: Endpoint) -> Connection:
        """A connection that is not open yet."""
        return Connection(endpoint, self.token, self.timeout_s)


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
        self._record_bytes = self._wire.batch_size * row_bytes

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

    def request(self, first: int, max_bytes: int) -> tuple[BatchQuery, int]:
        """The query for the record batches from the `first` on, about max_bytes of them, and how many its reply holds."""
        count = min(max(1, max_bytes // self._record_bytes), len(self) - first)
        start = self._wire.start_after(self._steps[first])
        return replace(self._query, start=start, worker=0, limit=count), count


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

    def __init__(self, service: Service, course: Course, pool: BufferPool, turn: int = 0) -> None:
        self._service, self._course, self._pool, self._turn = service, course, pool, turn
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
            batches = read_batches(connection, response, self._expected(request), self._rows(request), self._pool)
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


def trim(records: Iterable[Batch], course: Course) -> Iterator[Batch]:
    """Record batches without what lies behind the course's end.

    Each holds one or several whole training batches: the last may be short, and with remainder "exact" there may follow an
    empty one, so that every step has its batch.
    """
    steps, rows = course.num_steps, course.num_rows
    for record in records:
        if record.num_rows > rows:
            record = record.slice(0, rows)
        steps -= -(-record.num_rows // course.batch_size)
        rows -= record.num_rows
        if record.num_rows:
            yield record
        del record
    if steps:
        yield course.empty_batch()


def cut(records: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Training batches as views of trimmed record batches."""
    for record in records:
        for low in range(0, record.num_rows, batch_size) or (0,):
            yield record.slice(low, low + batch_size)
        del record
