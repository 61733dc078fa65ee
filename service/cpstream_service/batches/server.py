"""Arrow replies: what leads from a query to the bytes of its reply, and to their number.

Data in memory is gathered right in the event loop, a chunk at a time, with a turn for everybody else after each. A chunk takes
0.4 ms to gather, and handing it to a thread and back takes about as much of the CPU again, in races for the GIL. Data larger than
memory waits for the disk, and so is gathered in worker threads: the next chunk while the kernel takes the last. A buffer is
filled again only when nothing refers to it any more: uvicorn's `send` returns while the transport still holds the rest.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from cpstream_client.buffers import BufferPool, Bytes
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.contract.plan import Indices, Plan
from cpstream_client.contract.wire import BatchQuery, Column, Dtype

from ..errors import PayloadTooLarge, StorageFailed
from ..settings import ServeSettings
from ..snapshot.half import half_precision
from ..snapshot.store import Snapshot, Split
from .account import Account, clock
from .frames import END_OF_STREAM
from .gather import CHUNK_BYTES, ChunkLimit, Columns, Floats, reply, schema_message
from .limits import Limits
from .orders import OrderCache
from .pace import FIRST_BYTES, Pace
from .pages import Pages
from .residency import Residency
from .shares import Shares
from .streams import Streams

logger = logging.getLogger("cpstream.service")

GATHER_THREADS = 2
"""For orders and for data larger than memory: one goes on while another waits for the disk."""
IDLE_BUFFERS = 8
HELD_BYTES = 96 * 1024**2
"""About what the chunks of one client's streams hold together, when none of them is read."""
_FEWER_BATCHES = "ask for fewer with limit, and for the rest from a later start"
_SMALLER_BATCHES = "lower batch_size, or have the service allow more (--max-reply-bytes)"
_FEWER_INDICES = "ask for fewer indices at a time, or have the service allow more (--max-reply-bytes)"
ROWS_IN_LOOP = 20_000
"""Most samples of which the event loop gathers numbers or measures paths at once: half a millisecond."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrowReply:
    """An Arrow IPC stream to be sent, of which nothing is gathered yet.

    nbytes: of all chunks together. in_loop: whether the event loop may gather them, each being small and in memory. account: of
    what the chunks took, and which batches they hold. limit: of the chunks that are gathered next.
    """

    chunks: Iterator[Bytes]
    nbytes: int
    num_rows: int
    in_loop: bool
    account: Account = field(default_factory=Account)
    limit: ChunkLimit = field(default_factory=ChunkLimit)


class BatchServer:
    """Makes Arrow replies over the snapshots that were opened in it. One a process; `close` ends its threads.

    limits: those that the workers of a service share, or None where there is one.
    """

    def __init__(self, settings: ServeSettings, limits: Limits | None = None) -> None:
        self.streams = Streams(settings, limits)
        self._settings = settings
        self._executor = ThreadPoolExecutor(GATHER_THREADS, thread_name_prefix="gather")
        self._orders = OrderCache(self._executor)
        self._pool = BufferPool(max_idle=IDLE_BUFFERS)
        self._turns, self._threads = Shares(1), Shares(GATHER_THREADS)
        # Of splits that somebody holds: a version that is dropped takes its own along.
        self._half: WeakKeyDictionary[Split, asyncio.Future[Floats]] = WeakKeyDictionary()
        self._residency: WeakKeyDictionary[Split, Residency] = WeakKeyDictionary()
        self._pages = Pages()

    def open(self, snapshot: Snapshot) -> None:
        """Be ready for replies over this one, too. Old versions are seldom asked for: each may fill the memory by itself."""
        total = sum(split.embeddings.nbytes for split in snapshot.splits.values())
        residency = Residency(total)
        for split in snapshot.splits.values():
            residency.prepare(split.embeddings)
            self._residency[split] = residency
            if Residency(2 * total, residency.limit_bytes).fits:
                self._pages.open(split)

    def close(self) -> None:
        self._pages.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def fits(self, split: Split) -> bool:
        """Whether the data of the split's version fits in memory."""
        return self._residency[split].fits

    async def order(self, plan: Plan) -> Indices:
        """The order of the plan's epoch. (n,) int64, cached: read it only."""
        return await self._orders.get(plan)

    async def batches(self, split: Split, query: BatchQuery) -> ArrowReply:
        """The batches that the query asks for, one record batch each.

        Raises ValueError when a parameter is out of range, PayloadTooLarge, Overloaded.
        """
        n = len(split.cps)
        plan, steps = query.plan(n), query.steps(n)
        columns = await self._columns(split, query.dtype, query.columns)
        order = await self._orders.get(plan)
        if plan.start > n // 2:
            self._orders.prepare_next(plan)
        num_rows = query.num_rows(n)
        if "file_path" in columns.names and num_rows > ROWS_IN_LOOP:
            loop = asyncio.get_running_loop()
            nbytes = await loop.run_in_executor(self._executor, columns.frames_bytes, plan, order, steps)
        else:
            nbytes = columns.frames_bytes(plan, order, steps)
        schema = schema_message(columns.dim, split.name, split.fingerprint, query, num_rows, len(steps))
        residency = self._residency[split]
        batches = residency.ahead(columns.embeddings, plan.batches(order, steps), plan.shuffle)
        remedy = _FEWER_BATCHES if len(steps) > 1 else _SMALLER_BATCHES
        return self._reply(columns, schema, batches, nbytes, num_rows, residency.fits, min(query.batch_size, num_rows), remedy)

    async def take(self, split: Split, indices: Indices, dtype: Dtype, names: tuple[Column, ...]) -> ArrowReply:
        """The samples at `indices`, in that order, as one record batch. Indices must be within the split."""
        columns = await self._columns(split, dtype, names)
        query = BatchQuery(batch_size=max(1, len(indices)), dtype=dtype, columns=names)
        schema = schema_message(columns.dim, split.name, split.fingerprint, query, len(indices), 1)
        residency, nbytes = self._residency[split], columns.frame_of(indices).nbytes
        batches = residency.ahead(columns.embeddings, [indices], "uniform")
        return self._reply(columns, schema, batches, nbytes, len(indices), residency.fits, len(indices), _FEWER_INDICES)

    async def chosen(self, split: Split, chosen: IndexBatches, dtype: Dtype, names: tuple[Column, ...]) -> ArrowReply:
        """The samples at the indices of each batch, in that order, one record batch each. Indices must be within the split."""
        columns = await self._columns(split, dtype, names)
        query = BatchQuery(dtype=dtype, columns=names)
        num_rows = len(chosen.indices)
        if num_rows > ROWS_IN_LOOP or len(chosen) > ROWS_IN_LOOP:
            loop = asyncio.get_running_loop()
            nbytes = await loop.run_in_executor(self._executor, columns.chosen_bytes, chosen)
        else:
            nbytes = columns.chosen_bytes(chosen)
        schema = schema_message(columns.dim, split.name, split.fingerprint, query, num_rows, len(chosen))
        residency = self._residency[split]
        batches = residency.ahead(columns.embeddings, chosen, "uniform")
        return self._reply(
            columns, schema, batches, nbytes, num_rows, residency.fits, int(chosen.sizes.max(initial=0)), _FEWER_INDICES
        )

    def _reply(
        self,
        columns: Columns,
        schema: bytes,
        batches: Iterable[Indices],
        nbytes: int,
        num_rows: int,
        fits: bool,
        rows_of_batch: int,
        remedy: str,
    ) -> ArrowReply:
        total = len(schema) + nbytes + len(END_OF_STREAM)
        if total > self._settings.max_reply_bytes:
            raise PayloadTooLarge(
                f"the reply would hold {num_rows} samples, {total} bytes, more than the {self._settings.max_reply_bytes} allowed; "
                f"{remedy}"
            )
        # What stands behind the embeddings of a batch is gathered at once.
        in_loop = fits and rows_of_batch <= ROWS_IN_LOOP
        account, limit = Account(), ChunkLimit()
        return ArrowReply(reply(columns, schema, batches, self._pool, account, limit), total, num_rows, in_loop, account, limit)

    async def _columns(self, split: Split, dtype: Dtype, names: tuple[Column, ...]) -> Columns:
        split.check_columns(names)
        embeddings = await self._half_precision(split) if dtype == "float16" else self._pages.of(split)
        return Columns(embeddings, split.cps, split.file_paths, names, split.labels)

    async def _half_precision(self, split: Split) -> Floats:
        made = self._half.get(split)
        if made is None:
            loop = asyncio.get_running_loop()
            made = self._half[split] = loop.run_in_executor(
                None, half_precision, split
            )  # not by a thread of ours, of which there are two
        try:
            embeddings = await asyncio.shield(made)
        except OSError as error:
            if self._half.pop(split, None) is made:  # tried again by the next request
                logger.error("cannot make the float16 copy of split %r: %s", split.name, error)
            raise StorageFailed(
                "the service has no room for the float16 copy of this split; its log says where; ask for float32, or again later"
            ) from error
        self._residency[split].prepare(embeddings)
        return embeddings

    @property
    def open_streams(self) -> int:
        return self.streams.count

    def stream(self, client: str, most: int | None = None) -> AbstractContextManager[None]:
        """Within, one stream more is open, of batches or of a file. As Streams.open."""
        return self.streams.open(client, most)

    def chunk_bytes(self, client: str, pace: Pace | None) -> int:
        """How much a stream of this client's may be given at once."""
        fair = max(FIRST_BYTES, HELD_BYTES // max(1, self.streams.of(client)))
        return min(CHUNK_BYTES if pace is None else pace.chunk_bytes, fair)

    async def turn(self, client: str) -> None:
        """Returns when a chunk that was made elsewhere may be sent to this client."""
        if not self._turns.take(client):
            await self._turns.wait(client)
        try:
            await asyncio.sleep(0)
        finally:
            self._turns.give(client)

    async def gathered(
        self,
        chunks: Iterator[Bytes],
        left: int,
        in_loop: bool = True,
        client: str = "",
        account: Account | None = None,
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[Bytes, None]:
        """The chunks of a reply of `left` bytes, for one consumer that drops each before it asks for the next.

        client: whom it is for; clients get as many chunks as each other, however many streams they have. account: takes note of
        what it took. room: returns when the consumer has room for another chunk; until then none is gathered in the event loop.
        """
        account = account or Account()
        if in_loop:
            is_first = True
            while left:
                # One stream at a time, in turn, and in between the event loop looks after everybody else: with as many chunks as
                # streams between two looks, a health check would wait a second for the five looks that it needs.
                asked = clock()
                if not self._turns.take(client):
                    account.waits += 1
                    await self._turns.wait(client)
                try:
                    if not is_first:  # many replies are one chunk
                        await asyncio.sleep(0)
                    began = clock()
                    chunk = next(chunks)
                    account.wait_s += began - asked
                    account.gather_s += clock() - began
                finally:
                    self._turns.give(client)
                is_first = False
                left -= len(chunk)
                yield chunk
                del chunk
                if left and room is not None:
                    await room()
            return
        pending: asyncio.Future[Bytes] | None = asyncio.ensure_future(self._in_thread(chunks, client, account))
        try:
            while pending is not None:
                chunk = await pending
                left -= len(chunk)
                # while the kernel takes this one
                pending = asyncio.ensure_future(self._in_thread(chunks, client, account)) if left else None
                if room is not None:
                    await room()
                yield chunk
                del chunk
        finally:
            if pending is not None:
                pending.cancel()

    async def _in_thread(self, chunks: Iterator[Bytes], client: str, account: Account) -> Bytes:
        asked = clock()
        if not self._threads.take(client):
            account.waits += 1
            await self._threads.wait(client)
        account.wait_s += clock() - asked
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, _timed_next, chunks, account)
        finally:
            self._threads.give(client)


def _timed_next(chunks: Iterator[Bytes], account: Account) -> Bytes:
    began = clock()
    chunk = next(chunks)
    account.gather_s += clock() - began
    return chunk
