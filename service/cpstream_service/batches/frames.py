"""Arrow IPC messages whose header is made without a body, and whose body is gathered straight into place.

The header of a record batch depends only on its schema, its number of rows and (with file_path) the length of the paths. Arrow
writes one together with a body, as large as the batch will be; so it is asked once, for a batch of one row, and its numbers are
replaced. A frame is that header, the body, and a checksum in the last 8 bytes of the body, where no buffer lies and every Arrow
reader passes over it (a batch without a body has none):

    prefix and header | embedding rows | cps | index | file_path | CRC-32C of all before, 8 bytes little endian
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyarrow as pa
from crc32c import crc32c

from cpstream_client.contract.plan import Indices
from cpstream_client.contract.wire import CHECKSUM_BYTES, Column, Dtype, batch_schema

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
Lengths = TypeVar("Lengths", int, Indices)
_ITEM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class Frame:
    """The constant part of a record batch message. Offsets count from the start of the frame, in bytes.

    offsets: where each column's values begin; file_path has two, "file_path" for its (rows + 1,) int32 offsets and
    "file_path.data". head_checksum: that of the header alone, to go on from.
    """

    header: bytes
    offsets: dict[str, int]
    nbytes: int
    head_checksum: int


@lru_cache(maxsize=1024)
def frame(dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int = 0) -> Frame:
    """The frame of a batch of num_rows samples whose file paths are path_bytes long together."""
    # flatbuffers leave out what is 0, so that an empty batch has a header of another form
    template = _template(dim, dtype, columns, is_empty=num_rows == 0)
    header, body_bytes = template.filled(dim, dtype, columns, num_rows, path_bytes)
    offsets = {name: len(header) + at for name, at, _ in _buffers(dim, dtype, columns, num_rows, path_bytes) if name}
    return Frame(header, offsets, len(header) + body_bytes, crc32c(header))


def padded(nbytes: Lengths) -> Lengths:
    """Arrow's buffers, and so its bodies, end at multiples of 8. One length, or an array of them."""
    return -(-nbytes // 8) * 8


def _buffers(
    dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int
) -> Iterator[tuple[str | None, int, int]]:
    """Every buffer of a batch in Arrow's order: its name in Frame.offsets or None for a validity, where in the body, its length."""
    sizes: dict[Column, list[tuple[str | None, int]]] = {
        "embedding": [(None, 0), (None, 0), ("embedding", num_rows * dim * _ITEM_BYTES[dtype])],
        "cps": [(None, 0), ("cps", num_rows * 4)],
        "index": [(None, 0), ("index", num_rows * 8)],
        "file_path": [(None, 0), ("file_path", (num_rows + 1) * 4), ("file_path.data", path_bytes)],
    }
    at = 0
    for column in columns:
        for name, nbytes in sizes[column]:
            yield name, at, nbytes
            at += padded(nbytes)


@dataclass(frozen=True, slots=True)
class _Template:
    """Arrow's header of a batch, and where in it the numbers stand that depend on the batch. None: left out, being 0."""

    header: bytes
    num_rows: int | None
    nodes: int
    buffers: int
    body_bytes: int | None

    def filled(self, dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int) -> tuple[bytes, int]:
        """The header of another batch of this schema, and how many bytes of body it announces."""
        header, end = bytearray(self.header), 0
        if self.num_rows is not None:
            struct.pack_into("<q", header, self.num_rows, num_rows)
        lengths = [
            length for column in columns for length in ((num_rows, num_rows * dim) if column == "embedding" else (num_rows,))
        ]
        for i, length in enumerate(lengths):
            struct.pack_into("<qq", header, self.nodes + 16 * i, length, 0)  # no nulls
        for i, (_, at, nbytes) in enumerate(_buffers(dim, dtype, columns, num_rows, path_bytes)):
            struct.pack_into("<qq", header, self.buffers + 16 * i, at, nbytes)
            end = at + padded(nbytes)
        if self.body_bytes is None:
            return bytes(header), 0
        body_bytes = end + CHECKSUM_BYTES
        struct.pack_into("<q", header, self.body_bytes, body_bytes)
        return bytes(header), body_bytes


@lru_cache(maxsize=128)
def _template(dim: int, dtype: Dtype, columns: tuple[Column, ...], *, is_empty: bool) -> _Template:
    """Found in what Arrow writes, and checked against it for other numbers of rows: nothing here is assumed unseen.

    The flatbuffer tables are Arrow's Message (header, its third field, and bodyLength, its fourth) and RecordBatch (length, nodes,
    buffers).
    """
    message = _arrow_header(dim, dtype, columns, 0 if is_empty else 1, 0)
    table = 8 + struct.unpack_from("<I", message, 8)[0]
    batch = _target(message, _field(message, table, 2))
    template = _Template(
        message,
        _field(message, batch, 0),
        _target(message, _field(message, batch, 1)) + 4,
        _target(message, _field(message, batch, 2)) + 4,
        _field(message, table, 3),
    )
    for num_rows, path_bytes in ((0, 0),) if is_empty else ((1, 0), (2, 3), (9, 40)):
        filled, body_bytes = template.filled(dim, dtype, columns, num_rows, path_bytes)
        ours = bytearray(filled)
        if template.body_bytes is not None:  # without the checksum's bytes, of which Arrow knows nothing
            struct.pack_into("<q", ours, template.body_bytes, body_bytes - CHECKSUM_BYTES)
        if ours != _arrow_header(dim, dtype, columns, num_rows, path_bytes):
            raise AssertionError("Arrow's header of a record batch is not understood; this version of pyarrow is too new")
    return template


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer table lies, or None where it is left out."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", message, vtable + at)[0] if at < struct.unpack_from("<H", message, vtable)[0] else 0
    return table + offset if offset else None


def _target(message: bytes, field: int | None) -> int:
    """What a field that is a reference refers to."""
    assert field is not None, "Arrow leaves out no reference"  # noqa: S101
    target: int = field + struct.unpack_from("<I", message, field)[0]
    return target


def _arrow_header(dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int) -> bytes:
    """What Arrow itself writes before the body of such a batch of zeros."""
    schema = batch_schema(dim, dtype, columns)
    arrays = []
    for field in schema:
        if field.name == "file_path":
            lengths = np.zeros(num_rows + 1, dtype=np.int32)
            lengths[1:] = path_bytes
            arrays.append(pa.StringArray.from_buffers(num_rows, pa.py_buffer(lengths), pa.py_buffer(bytes(path_bytes))))
        elif field.name == "embedding":
            values = _zeros(field.type.value_type, num_rows * dim)
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
        else:
            arrays.append(_zeros(field.type, num_rows))
    message = pa.RecordBatch.from_arrays(arrays, schema=schema).serialize().to_pybytes()
    header: bytes = message[: 8 + struct.unpack_from("<i", message, 4)[0]]
    return header


def _zeros(value_type: pa.DataType, count: int) -> pa.Array:
    return pa.Array.from_buffers(value_type, count, [None, pa.py_buffer(bytes(count * value_type.bit_width // 8))])
