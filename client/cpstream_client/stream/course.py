"""What to ask for: a query as a course of record batches, and back to training batches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..contract.bodies import SplitInfo
from ..contract.plan import Plan
from ..contract.wire import COLUMNS, BatchQuery, split_path, stream_metadata
from ..transport.endpoints import Endpoint
from ..transport.replies import Reply
from .messages import Memory
from .reader import Batch, Expected, read_batches
from .sizes import sizes_of

WIRE_BATCH_BYTES = 2 * 1024**2
"""Of one record batch, made of as many training batches as fit: each costs about 50 microseconds to parse."""
WIRE_BATCH_ROWS = 16_384
"""And at most: where no embeddings are asked for, the service is busy with rows, and not with bytes."""
PATH_BYTES = 64
"""What a path counts as, before its length is known."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for some of a course's training batches, from the `first` on, and what its reply must hold.

    rows: samples of each of its record batches; per_record: training batches in each. nbytes: about how many all of them take.
    Depends on the course alone: any endpoint can be asked, any number of times.
    """

    method: str
    path: str
    params: Mapping[str, str]
    first: int
    rows: list[int]
    expected: Expected
    nbytes: int
    per_record: int = 1
    body: bytes | None = None
    content_type: str = ""

    @property
    def count(self) -> int:
        """How many record batches the reply holds."""
        return len(self.rows)

    def behind(self, done: int | None = None) -> int:
        """The training batch behind its first `done` record batches; by default, behind all of them."""
        return self.first + (self.count if done is None else done) * self.per_record

    def read(self, reply: Reply, endpoint: Endpoint, memory: Memory) -> Iterator[Batch]:
        """The record batches of an endpoint's reply, each verified before it is handed out. Raises as read_batches."""
        return read_batches(reply, endpoint, self.expected, self.rows, memory)


class Asking(Protocol):
    """A sequence of training batches, and the requests that fetch them."""

    def more(self, first: int) -> bool:
        """Whether there are training batches from the `first` on; waits where that is not known yet."""

    def ask(self, first: int, max_bytes: int, record_bytes: int) -> Ask | None:
        """The request for training batches from the `first` on; None where there are none yet.

        About max_bytes of them, in record batches of at most record_bytes, but of one training batch at least.
        """

    def rest(self, ask: Ask, done: int) -> Ask:
        """The request for what one asked for behind its first `done` record batches."""

    def left_bytes(self, first: int) -> int | None:
        """About how many bytes the training batches from the `first` on take; None where nobody knows."""


class Course:
    """What to ask for: one DataLoader worker's share of a query, cut into record batches. Pure arithmetic.

    With one worker a record batch holds several training batches (by default, as many as WIRE_BATCH_BYTES hold), with more exactly
    one, because the next belongs to another worker.
    """

    def __init__(self, query: BatchQuery, info: SplitInfo) -> None:
        query.check_columns(info.labels)
        self.info = info
        n = info.num_samples
        self._row_bytes = row_bytes(query, info.embedding_dim)
        self.num_steps = len(query.steps(n))  # of this worker, in training batches
        self.batch_size = query.batch_size
        self.num_rows = query.num_rows(n)
        self._sizes = sizes_of(query.dtype, query.columns, info)
        # A ragged end is cut off here; the service need not know of it.
        self._query = replace(query, drop_last=False, limit=None, fingerprint=info.fingerprint)
        self._plan: Plan = self._query.plan(n)
        self._steps = range(-(-self.num_rows // self.batch_size)) if query.num_workers == 1 else query.steps(n)

    def __len__(self) -> int:
        """Record batches to fetch in all, as large ones as there are."""
        return -(-len(self._steps) // self._per_record(WIRE_BATCH_BYTES))

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
            {name: np.empty(0, np.float32) for name in columns if name not in COLUMNS},
        )

    def more(self, first: int) -> bool:
        return first < len(self._steps)

    def ask(self, first: int, max_bytes: int, record_bytes: int = 0) -> Ask | None:
        if first >= len(self._steps):
            return None
        per_record = self._per_record(record_bytes or WIRE_BATCH_BYTES)
        count = max(1, max_bytes // (per_record * self.batch_size * self._row_bytes))
        count = min(count, self._sizes.records(per_record * self.batch_size) or count)  # that the service sends in one reply
        return self._ask(first, min(count, -(-(len(self._steps) - first) // per_record)), per_record)

    def rest(self, ask: Ask, done: int) -> Ask:
        return self._ask(ask.behind(done), ask.count - done, ask.per_record)

    def left_bytes(self, first: int) -> int | None:
        return (len(self._steps) - first) * self.batch_size * self._row_bytes

    def _per_record(self, record_bytes: int) -> int:
        """How many training batches a record batch holds."""
        rows = min(min(record_bytes, WIRE_BATCH_BYTES) // self._row_bytes, WIRE_BATCH_ROWS, self._sizes.rows() or WIRE_BATCH_ROWS)
        return max(1, rows // self.batch_size) if self._query.num_workers == 1 else 1

    def _ask(self, first: int, count: int, per_record: int) -> Ask:
        batch_size, info = self.batch_size * per_record, self.info
        start = self._plan.start_after(self._steps[first])
        query = replace(self._query, batch_size=batch_size, start=start, worker=0, limit=count)
        plan = query.plan(info.num_samples)
        rows = [len(range(*plan.step_bounds(step))) for step in query.steps(info.num_samples)]
        metadata = stream_metadata(info.split, info.fingerprint, query, sum(rows), count)
        expected = Expected(info.embedding_dim, query.dtype, query.columns, metadata)
        path, nbytes = split_path(info.split, "batches"), sum(rows) * self._row_bytes
        return Ask("GET", path, query.to_params(), first, rows, expected, nbytes, per_record)


def row_bytes(query: BatchQuery, dim: int) -> int:
    """About what one sample takes on the wire."""
    sizes = {"embedding": dim * (2 if query.dtype == "float16" else 4), "index": 8, "file_path": PATH_BYTES}
    return sum(sizes.get(name, 4) for name in query.columns)


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


def parts(num_rows: int, batch_size: int) -> list[slice]:
    """Where the training batches of a record batch lie in it; those without rows are one empty batch."""
    return [slice(low, low + batch_size) for low in range(0, num_rows, batch_size) or (0,)]


def cut(records: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Training batches as views of trimmed record batches."""
    for record in records:
        for part in parts(record.num_rows, batch_size):
            yield record.slice(part.start, part.stop)
        del record
