"""Arrow IPC messages, read from an HTTP reply with one copy (from the kernel into a pooled buffer) and verified before use.

A message is a prefix of 8 bytes (a mark and the header's length), a header, and a body. The header of a record batch says where in
the body each column lies; for batches of one size it is the same bytes every time. So Arrow parses each header once, and what it
said is remembered: that took most of the time a small batch took. Nothing is parsed before its checksum has been found right.
"""

import http.client
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from .buffers import BufferPool, Bytes
from .errors import CorruptedError, TransportError
from .wire import CHECKSUM_BYTES

_MARK = b"\xff\xff\xff\xff"
_PREFIX_BYTES = 8
_POOLED_FROM_BYTES = 16 * 1024
"""Smaller bodies are not worth a lease."""
_PIECE_BYTES = 512 * 1024
"""Of one receive: half of it and the checksum's share fit in a level-2 cache."""
_MAX_REMEMBERED = 256


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
    """What a record batch's header says. columns: of fixed width only; the others need Arrow each time."""

    num_rows: int
    columns: tuple[Column, ...]
    has_strings: bool


class Messages:
    """The messages of one reply's body, in order. Every method raises TransportError, or CorruptedError for what is damaged."""

    def __init__(self, response: http.client.HTTPResponse, pool: BufferPool, url: str) -> None:
        self._response, self._pool, self._url = response, pool, url
        self.left = response.length or 0
        self._schema_header = b""
        self._schema: pa.Schema = None

    def schema(self) -> pa.Schema:
        """The first message. It carries no checksum: what it says is compared with what was asked for."""
        header = self._header()
        if header is None:
            raise CorruptedError(f"{self._url}: the stream is empty")
        self._schema_header = header
        self._schema = pa.ipc.read_schema(pa.py_buffer(header))
        return self._schema

    def record_batch(self) -> tuple[Layout, Bytes, pa.RecordBatch | None]:
        """The next message: its layout, its body, and the batch itself where the layout does not say everything."""
        header = self._header()
        if header is None:
            raise CorruptedError(f"{self._url}: the stream ended before its last batch")
        body = self._verified_body(header)
        key = self._schema_header, header
        layout = _LAYOUTS.get(key)
        if layout is not None and not layout.has_strings:
            return layout, body, None
        # One more copy, of the first batch of its size: Arrow wants header and body in one piece.
        message = pa.py_buffer(header + body.tobytes())
        batch = pa.ipc.read_record_batch(message, self._schema)
        layout = self._layout(batch, message.address + len(header), body.nbytes)
        if len(_LAYOUTS) >= _MAX_REMEMBERED:
            _LAYOUTS.clear()
        _LAYOUTS[key] = layout
        return layout, body, batch

    def end(self) -> None:
        """The mark behind the last batch, after which the connection can be used again."""
        if self._header() is not None or self.left:
            raise CorruptedError(f"{self._url}: the stream goes on behind its last batch")
        self._response.read()

    def _header(self) -> bytes | None:
        """Prefix and header of the next message; None at the end mark."""
        prefix = self._read(_PREFIX_BYTES).tobytes()
        length = struct.unpack("<i", prefix[4:])[0]
        if prefix[:4] != _MARK or length < 0:
            raise CorruptedError(f"{self._url}: no Arrow message begins with {prefix.hex()}")
        return prefix + self._read(length).tobytes() if length else None

    def _verified_body(self, header: bytes) -> Bytes:
        """The body that a header announces, its checksum found right. An empty one has none."""
        nbytes = _body_bytes(header, self._url)
        body = self._allocate(nbytes)
        checksum = xxhash.xxh3_64(header)
        checked = nbytes - CHECKSUM_BYTES
        for low in range(0, nbytes, _PIECE_BYTES):
            high = min(low + _PIECE_BYTES, nbytes)
            self._fill(body[low:high])
            checksum.update(body[low : min(high, max(low, checked))].data)  # while the piece is in the processor's cache
        if nbytes:
            sent = int.from_bytes(body[checked:].tobytes(), "little")
            if checked < 0 or checksum.intdigest() != sent:
                raise CorruptedError(f"{self._url}: a batch arrived damaged (checksum {checksum.hexdigest()}, sent {sent:016x})")
        return body

    def _read(self, nbytes: int) -> Bytes:
        into = self._allocate(nbytes)
        self._fill(into)
        return into

    def _allocate(self, nbytes: int) -> Bytes:
        if nbytes > self.left:
            raise CorruptedError(f"{self._url}: a message asks for {nbytes} bytes where {self.left} are left")
        self.left -= nbytes
        return self._pool.lease(nbytes) if nbytes >= _POOLED_FROM_BYTES else np.empty(nbytes, np.uint8)

    def _fill(self, into: Bytes) -> None:
        got = 0
        while got < len(into):
            try:
                count = self._response.readinto(into[got:].data)
            except (OSError, http.client.HTTPException) as error:
                raise TransportError(f"{self._url}: {str(error) or type(error).__name__}") from error
            if not count:  # http.client says nothing of a body cut short
                raise TransportError(f"{self._url}: the connection ended before the reply did")
            got += count

    def _layout(self, batch: pa.RecordBatch, body_address: int, body_bytes: int) -> Layout:
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
            dtype = np.dtype(value_type.to_pandas_dtype())
            end = begin + math.prod(shape) * dtype.itemsize
            if not 0 <= begin <= end <= body_bytes:  # Arrow converts what a damaged schema calls big-endian
                raise CorruptedError(f"{self._url}: a column lies outside its batch")
            columns.append(Column(name, begin, end, dtype, shape))
        return Layout(batch.num_rows, tuple(columns), len(columns) < batch.num_columns)


_LAYOUTS: dict[tuple[bytes, bytes], Layout] = {}


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
