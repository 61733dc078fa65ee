"""Arrow IPC messages, read from an HTTP reply with one copy (from the kernel into a pooled buffer) and verified before use.

A message is a prefix of 8 bytes (a mark and the header's length), a header, and a body. The header of a record batch says where in
the body each column lies; for batches of one size it is the same bytes every time. So Arrow parses each header once a process;
after that, prefix, header and body are read in one go and the header is only compared. At gigabytes a second it is the number of
Python's steps a megabyte that counts. Nothing is parsed before its checksum has been found right.
"""

import math
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from crc32c import crc32c

from ..buffers import ALIGNMENT, BufferPool, Bytes
from ..contract.wire import CHECKSUM_BYTES
from ..errors import CorruptedError, TransportError
from ..locks import new_lock
from ..transport.replies import Reply

_MARK = b"\xff\xff\xff\xff"
_PREFIX_BYTES = 8
_POOLED_FROM_BYTES = 16 * 1024
"""Smaller bodies are not worth a lease."""
_PIECE_BYTES = 1024**2
"""Of one receive, so that the checksum reads from the processor's cache what the kernel has just written there."""
_MAX_REMEMBERED = 256
_MOST_BYTES = 2**31
"""Of a message of a reply whose length nobody said: a damaged header must not allocate an exabyte."""
_DTYPES: dict[pa.DataType, np.dtype[Any]] = {
    pa.float16(): np.dtype(np.float16),
    pa.float32(): np.dtype(np.float32),
    pa.int64(): np.dtype(np.int64),
}
"""Of all columns of fixed width that batch_schema has. Arrow's own to_pandas_dtype imports pandas before pyarrow 26."""


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column of a record batch lies in its body: bytes begin to end. shape: (rows,) or (rows, D)."""

    name: str
    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a record batch's header says. header: with its prefix; columns: of fixed width only, the others need Arrow each time."""

    header: bytes
    body_bytes: int
    num_rows: int
    columns: tuple[Column, ...]
    has_strings: bool


class Times:
    """Seconds that streams spent in receiving bytes, and in checksums. Safe between threads."""

    def __init__(self) -> None:
        self.fetch_s = self.verify_s = 0.0
        self._adding = new_lock()

    def add(self, fetch_s: float, verify_s: float) -> None:
        with self._adding:
            self.fetch_s += fetch_s
            self.verify_s += verify_s


@dataclass(frozen=True, slots=True)
class Memory:
    """What streams leave to those after them, from epoch to epoch: buffers, and layouts by what was asked for and how many rows.

    Safe between threads.
    """

    pool: BufferPool
    layouts: dict[tuple[object, int], Layout] = field(default_factory=dict)
    times: Times = field(default_factory=Times)


class Messages:
    """The messages of one reply's body, in order. Every method raises TransportError, or CorruptedError for what is damaged.

    kind: what batches of the same number of rows have in common with others in this memory: the endpoint, and what was asked for.
    """

    def __init__(self, reply: Reply, memory: Memory, url: str, kind: object) -> None:
        self._reply, self._url, self._kind = reply, url, kind
        self._pool, self._known, self._times = memory.pool, memory.layouts, memory.times
        self.left = reply.length  # None: a proxy has taken the length away, and the reply ends where it ends
        self.schema: pa.Schema = None  # the caller sets it before the first record batch

    def schema_header(self) -> bytes:
        """The first message, which is only a header. It carries no checksum: compare what it says with what was asked for."""
        header = self._header()
        if header is None:
            raise CorruptedError(f"{self._url}: the stream is empty")
        return header

    def record_batch(self, num_rows: int) -> tuple[Layout, Bytes, pa.RecordBatch | None]:
        """The next message, of a batch of num_rows: layout, body, and the batch itself where the layout does not say everything."""
        layout = self._known.get((self._kind, num_rows))
        if layout is not None:
            try:
                return layout, self._same_again(layout), None
            except TransportError:  # perhaps another release of the service, whose headers differ: Arrow parses the next one
                self._known.pop((self._kind, num_rows), None)
                raise
        header = self._header()
        if header is None:
            raise CorruptedError(f"{self._url}: the stream ended before its last batch")
        body = self._allocate(_body_bytes(header, self._url))
        self._receive(body, crc32c(header))
        # One more copy, of the first batch of its size: Arrow wants header and body in one piece.
        message = pa.py_buffer(header + body.tobytes())
        batch = pa.ipc.read_record_batch(message, self.schema)
        layout = self._layout(header, batch, message.address + len(header), body.nbytes)
        if layout.num_rows != num_rows or (num_rows and not len(body)):
            raise CorruptedError(f"{self._url}: a batch has {layout.num_rows} rows where {num_rows} were asked for")
        if len(body) and not layout.has_strings:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[self._kind, num_rows] = layout
        return layout, body, batch

    def end(self) -> None:
        """The mark behind the last batch, after which the connection can be used again."""
        if self._header() is not None or self.left:
            raise CorruptedError(f"{self._url}: the stream goes on behind its last batch")
        self._reply.finish()

    def _header(self) -> bytes | None:
        """Prefix and header of the next message; None at the end mark."""
        prefix = self._read(_PREFIX_BYTES)
        length = struct.unpack("<i", prefix[4:])[0]
        if prefix[:4] != _MARK or length < 0:
            raise CorruptedError(f"{self._url}: no Arrow message begins with {prefix.hex()}")
        return prefix + self._read(length) if length else None

    def _same_again(self, layout: Layout) -> Bytes:
        """The body of a message whose header is that of an earlier one. Aligned to 64 bytes, as Arrow recommends."""
        header_bytes = len(layout.header)
        padding = -header_bytes % ALIGNMENT
        message = self._allocate(header_bytes + layout.body_bytes, padding)
        self._receive(message, 0)
        if message.data[:header_bytes] != layout.header:
            raise CorruptedError(f"{self._url}: a batch has another header than the one before it")
        return message[header_bytes:]

    def _receive(self, message: Bytes, checksum: int) -> None:
        """Fill what ends with a checksum, and find that right; empty bodies have none. checksum: of what came before."""
        whole = message.data
        checked = len(whole) - CHECKSUM_BYTES
        piece = -(-len(whole) // max(1, round(len(whole) / _PIECE_BYTES)))  # equal ones, or a small rest would cost a wake-up
        fetch_s = verify_s = 0.0
        then = time.perf_counter()
        for low in range(0, len(whole), piece or 1):
            self._reply.fill(whole[low : low + piece])
            filled = time.perf_counter()
            checksum = crc32c(whole[low : min(low + piece, max(low, checked))], checksum)  # while it is in the processor's cache
            checked_at = time.perf_counter()
            fetch_s, verify_s, then = fetch_s + filled - then, verify_s + checked_at - filled, checked_at
        self._times.add(fetch_s, verify_s)
        if len(whole):
            sent = int.from_bytes(whole[max(0, checked) :], "little")
            if checked < 0 or checksum != sent:
                raise CorruptedError(f"{self._url}: a batch arrived damaged (checksum {checksum:x}, sent {sent:x})")

    def _read(self, nbytes: int) -> bytes:
        into = self._allocate(nbytes)
        self._reply.fill(into.data)
        return into.tobytes()

    def _allocate(self, nbytes: int, padding: int = 0) -> Bytes:
        """Memory for the next nbytes of the reply, `padding` bytes behind an aligned address."""
        left = self.left if self.left is not None else _MOST_BYTES
        if nbytes > left:
            raise CorruptedError(f"{self._url}: a message asks for {nbytes} bytes where {left} are left")
        if self.left is not None:
            self.left -= nbytes
        if nbytes < _POOLED_FROM_BYTES:
            return np.empty(nbytes, np.uint8)
        return self._pool.lease(padding + nbytes)[padding:]

    def _layout(self, header: bytes, batch: pa.RecordBatch, body_address: int, body_bytes: int) -> Layout:
        columns = []
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_string(values.type):
                continue
            shape: tuple[int, ...] = (batch.num_rows,)
            value_type = values.type
            if pa.types.is_fixed_size_list(value_type):
                shape, value_type = (batch.num_rows, value_type.list_size), value_type.value_type
            buffer = values.buffers()[-1]
            # Where an empty buffer lies means nothing.
            begin = buffer.address - body_address if buffer is not None and batch.num_rows else 0
            dtype = _DTYPES[value_type]
            end = begin + math.prod(shape) * dtype.itemsize
            if not 0 <= begin <= end <= body_bytes:  # Arrow converts what a damaged schema calls big-endian
                raise CorruptedError(f"{self._url}: a column lies outside its batch")
            columns.append(Column(name, begin, end, dtype, shape))
        return Layout(header, body_bytes, batch.num_rows, tuple(columns), len(columns) < batch.num_columns)


def _body_bytes(header: bytes, url: str) -> int:
    """Length of the body that a header announces: bodyLength, the fourth field of Arrow's flatbuffer table Message."""
    try:
        table = _PREFIX_BYTES + struct.unpack_from("<I", header, _PREFIX_BYTES)[0]
        vtable = table - struct.unpack_from("<i", header, table)[0]
        vtable_bytes = struct.unpack_from("<H", header, vtable)[0]
        field = struct.unpack_from("<H", header, vtable + 4 + 2 * 3)[0] if vtable_bytes > 4 + 2 * 3 else 0
        nbytes: int = struct.unpack_from("<q", header, table + field)[0] if field else 0  # left out: the default, 0
    except struct.error:
        nbytes = -1
    if nbytes < 0:
        raise CorruptedError(f"{url}: the header of a message is damaged")
    return nbytes
