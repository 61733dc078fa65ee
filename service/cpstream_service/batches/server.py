"""Arrow replies: what leads from a query to ASGI messages.

Data in memory is gathered right in the event loop, a chunk at a time, with a turn for everybody else after each. A chunk takes
0.4 ms to gather, and handing it to a thread and back takes about as much of the CPU again, in races for the GIL. Data larger than
memory waits for the disk, and so is gathered in worker threads: the next chunk while the kernel takes the last. A buffer is
filled again only when nothing refers to it any more: uvicorn's `send` returns while the transport still holds the rest.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from hashlib import blake2b

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cpstream_client.buffers import BufferPool, Bytes
from cpstream_client.contract.plan import Indices, Plan
from cpstream_client.contract.wire import ARROW_STREAM, BatchQuery, Column, Dtype, stream_metadata

from ..errors import InvalidParameter, Overloaded, PayloadTooLarge
from ..settings import ServeSettings
from ..snapshot.store import Snapshot, Split
from .frames import END_OF_STREAM
from .gather import CHUNK_BYTES, Columns, Floats, reply, schema_message
from .orders import OrderCache
from .residency import Residency

GATHER_THREADS = 2
"""For orders and for data larger than memory: one goes on while another waits for the disk."""
IDLE_BUFFERS = 8


class BatchServer:
    """Makes Arrow replies over one snapshot. One a process; `close` ends its threads."""

    def __init__(self, snapshot: Snapshot, settings: ServeSettings) -> None:
        self.open_streams = 0
        self._settings = settings
        self._executor = ThreadPoolExecutor(GATHER_THREADS, thread_name_prefix="gather")
        self._orders = OrderCache(self._executor)
        self._pool = BufferPool(max_idle=IDLE_BUFFERS)
        self._turn = asyncio.Lock()
        self._half: dict[str, asyncio.Future[Floats]] = {}
        self._residency = Residency(sum(split.embeddings.nbytes for split in snapshot.splits.values()))
        for split in snapshot.splits.values():
            self._residency.prepare(split.embeddings)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def order(self, plan: Plan) -> Indices:
        """The order of the plan's epoch. (n,) int64, cached: read it only."""
        return await self._orders.get(plan)

    async def batches(self, split: Split, query: BatchQuery) -> Response:
        """The batches that the query asks for, one record batch each.

        Raises ValueError when a parameter is out of range, PayloadTooLarge, Overloaded.
        """
        n = len(split.cps)
        plan, steps = query.plan(n), query.steps(n)
        columns = await self._columns(split, query.dtype, query.columns)
        low, high = plan.step_bounds(steps[-1]) if steps else (0, 0)
        num_rows = max(0, len(steps) - 1) * plan.batch_size + high - low  # only the last batch can be short
        self._check_size(num_rows, columns)
        order = await self._orders.get(plan)
        if plan.start > n // 2:
            self._orders.prepare_next(plan)
        metadata = stream_metadata(split.name, split.fingerprint, query, num_rows, len(steps))
        schema = schema_message(columns, metadata)
        if "file_path" in columns.names:
            nbytes = sum(columns.frame_of(batch).nbytes for batch in _batches(plan, order, steps))
        elif steps:
            nbytes = columns.frame(plan.batch_size).nbytes * (len(steps) - 1) + columns.frame(high - low).nbytes
        else:
            nbytes = 0
        batches = self._residency.ahead(columns.embeddings, _batches(plan, order, steps), plan.shuffle)
        return self._reply(columns, schema, batches, nbytes, _etag(split.fingerprint, query))

    async def take(self, split: Split, indices: Indices, dtype: Dtype, names: tuple[Column, ...]) -> Response:
        """The samples at `indices`, in that order, as one record batch. Indices must be within the split."""
        columns = await self._columns(split, dtype, names)
        self._check_size(len(indices), columns)
        query = BatchQuery(batch_size=max(1, len(indices)), dtype=dtype, columns=names)
        schema = schema_message(columns, stream_metadata(split.name, split.fingerprint, query, len(indices), 1))
        batches = self._residency.ahead(columns.embeddings, [indices], "uniform")
        return self._reply(columns, schema, batches, columns.frame_of(indices).nbytes)

    def _reply(self, columns: Columns, schema: bytes, batches: Iterable[Indices], nbytes: int, etag: str | None = None) -> Response:
        total = len(schema) + nbytes + len(END_OF_STREAM)
        return ArrowStream(self, reply(columns, schema, batches, self._pool), total, etag)

    def _check_size(self, num_rows: int, columns: Columns) -> None:
        nbytes = num_rows * (columns.embedding_bytes + 16)
        if nbytes > self._settings.max_reply_bytes:
            raise PayloadTooLarge(
                f"the reply would hold {num_rows} samples, {nbytes} bytes, more than the {self._settings.max_reply_bytes} allowed; "
                "ask for fewer with limit, and for the rest from a later start"
            )

    async def _columns(self, split: Split, dtype: Dtype, names: tuple[Column, ...]) -> Columns:
        embeddings: Floats = split.embeddings
        if dtype == "float16":
            if split.name not in self._half:
                loop = asyncio.get_running_loop()
                self._half[split.name] = loop.run_in_executor(self._executor, _half_precision, split.embeddings)
            embeddings = await asyncio.shield(self._half[split.name])
            self._residency.prepare(embeddings)
        return Columns(embeddings, split.cps, split.file_paths, names)

    def enter(self) -> None:
        """Count a stream in. Raises Overloaded."""
        if self.open_streams >= self._settings.max_streams:
            raise Overloaded(f"{self.open_streams} batch streams are open, as many as allowed; ask again in a second")
        self.open_streams += 1

    async def gathered(self, chunks: Iterator[Bytes], left: int) -> AsyncGenerator[Bytes, None]:
        """The chunks of a reply of `left` bytes, for one consumer that drops each before it asks for the next."""
        if self._residency.fits:
            is_first = True
            while left:
                # One stream at a time, in turn, and in between the event loop looks after everybody else: with as many chunks as
                # streams between two looks, a health check would wait a second for the five looks that it needs.
                async with self._turn:
                    if not is_first:  # many replies are one chunk
                        await asyncio.sleep(0)
                    chunk = next(chunks)
                is_first = False
                left -= len(chunk)
                yield chunk
                del chunk
            return
        loop = asyncio.get_running_loop()
        pending: asyncio.Future[Bytes] | None = loop.run_in_executor(self._executor, next, chunks)
        try:
            while pending is not None:
                chunk = await pending
                left -= len(chunk)
                pending = loop.run_in_executor(self._executor, next, chunks) if left else None  # while the kernel takes this one
                yield chunk
                del chunk
        finally:
            if pending is not None:
                pending.cancel()


class ArrowStream(Response):
    """An Arrow IPC stream: schema, batches, end mark. Content-Length is known before the first byte is gathered."""

    media_type = ARROW_STREAM

    def __init__(self, server: BatchServer, chunks: Iterator[Bytes], nbytes: int, etag: str | None = None) -> None:
        self._server, self._chunks, self._nbytes = server, chunks, nbytes
        headers = {"Content-Length": str(nbytes), "Cache-Control": "no-transform"}
        if etag:
            headers["ETag"] = etag
        super().__init__(headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._server.enter()
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
            else:
                await self._send_chunks(receive, send)
        finally:
            self._server.open_streams -= 1

    async def _send_chunks(self, receive: Receive, send: Send) -> None:
        left = self._nbytes
        # Not worth a task where all of it goes out at once.
        gone = asyncio.ensure_future(_disconnected(receive)) if left > 2 * CHUNK_BYTES else None
        try:
            async with aclosing(self._server.gathered(self._chunks, left)) as chunks:
                async for chunk in chunks:
                    left -= len(chunk)
                    # The transport keeps this memoryview, and with it the lease, until the socket has taken its last byte.
                    await send({"type": "http.response.body", "body": chunk.data, "more_body": left > 0})
                    del chunk
                    if gone is not None and gone.done():
                        return
        finally:
            if gone is not None:
                gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _batches(plan: Plan, order: Indices, steps: range) -> Iterator[Indices]:
    return (plan.batch(order, step) for step in steps)


def _etag(fingerprint: str, query: BatchQuery) -> str:
    digest = blake2b(repr(sorted(query.to_params().items())).encode(), digest_size=8).hexdigest()
    return f'"{fingerprint}-{digest}"'


def _half_precision(embeddings: Floats) -> Floats:
    """A float16 copy. (N, D) float32 -> (N, D) float16, in an unlinked temporary file that memory pressure can write out.

    Converting on the way out was measured at a fifth of the speed of gathering what is already converted.
    """
    with tempfile.TemporaryFile() as file:
        half: Floats = np.memmap(file, dtype=np.float16, mode="w+", shape=embeddings.shape)
    with np.errstate(over="ignore"):
        for low in range(0, len(embeddings), 4096):
            half[low : low + 4096] = embeddings[low : low + 4096]
            if np.isinf(half[low : low + 4096]).any():
                raise InvalidParameter("dtype float16 cannot hold this split's embeddings: some exceed 65504; ask for float32")
    return half
