"""Record batches of indices that become known bit by bit, as a sampler draws them, and the requests that fetch them."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Condition

from ..contract.bodies import SplitInfo
from ..contract.index_batches import IndexBatches
from ..contract.plan import Indices
from ..contract.wire import OCTET_STREAM, BatchQuery, split_path
from ..errors import CorruptedError
from ..locks import new_lock
from ..transport.endpoints import Endpoint
from ..transport.replies import Reply
from .course import WIRE_BATCH_BYTES, WIRE_BATCH_ROWS, Ask, row_bytes
from .messages import Memory
from .reader import Batch, Expected, read_batches
from .sizes import sizes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenAsk(Ask):
    """A request for batches of these indices: what comes is compared with them."""

    chosen: IndexBatches

    def read(self, reply: Reply, endpoint: Endpoint, memory: Memory) -> Iterator[Batch]:
        batches = read_batches(reply, endpoint, self.expected, self.rows, memory)
        for indices, batch in zip(self.chosen, batches, strict=True):
            if batch.index is None or batch.index.tobytes() != indices.tobytes():
                raise CorruptedError(f"{reply.url}: the reply holds other samples than those asked for")
            yield batch
            del batch


class ChosenCourse:
    """What one thread puts, another one asks for. Units are record batches, counted from 0.

    query: its dtype and columns count, of which `index` is one. Raises ValueError for a column that the split does not have.
    """

    def __init__(self, query: BatchQuery, info: SplitInfo) -> None:
        query.check_columns(info.labels)
        self._query, self._info = query, info
        self._sizes = sizes_of(query.dtype, query.columns, info)
        self._row_bytes = row_bytes(query, info.embedding_dim)
        self._changed = Condition(new_lock())
        self._records: deque[Indices] = deque()
        self._first = 0  # the number of the first of them
        self._ended = False

    @property
    def record_rows(self) -> int:
        """How many samples a record batch holds at most, if it is not a single training batch."""
        return min(WIRE_BATCH_BYTES // self._row_bytes, WIRE_BATCH_ROWS, self._sizes.rows() or WIRE_BATCH_ROWS) or 1

    def put(self, records: Iterable[Indices]) -> None:
        with self._changed:
            self._records.extend(records)
            self._changed.notify_all()

    def end(self) -> None:
        """No more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def forget(self, before: int) -> None:
        """The record batches before this one will not be asked for again."""
        with self._changed:
            while self._first < before:
                self._records.popleft()
                self._first += 1

    def more(self, first: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or first < self._first + len(self._records))
            return first < self._first + len(self._records)

    def ask(self, first: int, max_bytes: int, record_bytes: int = 0) -> Ask | None:
        with self._changed:
            known = [self._records[number] for number in range(first - self._first, len(self._records))]
        count = nbytes = 0
        while count < len(known):
            nbytes += len(known[count]) * self._row_bytes + self._sizes.record
            if count and nbytes > min(max_bytes, (self._sizes.limit or nbytes) - self._sizes.reply):
                break
            count += 1
        return self._ask(first, IndexBatches.of(known[:count])) if count else None

    def rest(self, ask: Ask, done: int) -> Ask:
        assert isinstance(ask, ChosenAsk)  # noqa: S101 - it is one of this course
        return self._ask(ask.behind(done), ask.chosen.rest(done))

    def left_bytes(self, first: int) -> int | None:
        return None

    def _ask(self, first: int, chosen: IndexBatches) -> Ask:
        info, query = self._info, self._query
        params = {"dtype": query.dtype, "columns": ",".join(query.columns), "fingerprint": info.fingerprint}
        metadata = {
            "split": info.split,
            "fingerprint": info.fingerprint,
            "num_rows": str(len(chosen.indices)),
            "num_batches": str(len(chosen)),
        }
        return ChosenAsk(
            method="POST",
            path=split_path(info.split, "batches"),
            params=params,
            first=first,
            rows=chosen.sizes.tolist(),
            nbytes=len(chosen.indices) * self._row_bytes,
            expected=Expected(info.embedding_dim, query.dtype, query.columns, metadata),
            body=chosen.pack(),
            content_type=OCTET_STREAM,
            chosen=chosen,
        )
