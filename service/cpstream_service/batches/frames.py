"""Arrow IPC messages whose header is made without a body, and whose body is gathered straight into place.

The header of a record batch depends only on its schema, its number of rows and (with file_path) the length of the paths. Arrow
writes one together with a body, as large as the batch will be; so it is asked once, for a batch of one row, and its numbers are
replaced. A frame is that header, the body, and a checksum in the last 8 bytes of the body, where no buffer lies and every Arrow
reader passes over it (a batch without a body has none):

    prefix and header | embedding rows | cps | index | further labels | file_path | CRC-32C of all before, 8 bytes little endian
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


@lru_cache(maxsize=2048)  # batches of few paths often have as long ones
def frame(dim: int, dtype: Dtype, columns: tuple[Column, ...], num_rows: int, path_bytes: int = 0) -> Frame:
    """The frame of a batch of num_rows samples whose file paths are path_bytes long together."""
    template = _template(dim, dtype, columns, is_empty=num_rows == 0)
    without_paths = _frame(template, num_rows)
    return template.with_paths(without_paths, path_bytes) if path_bytes else without_paths


def padded(nbytes: Lengths) -> Lengths:
    """Arrow's buffers, and so its bodies, end at multiples of 8. One length, or an array of them."""
    return -(-nbytes // 8) * 8


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    """Arrow's header of a batch, and where in it the numbers stand that depend on the batch. None: left out, being 0."""

    dim: int
    dtype: Dtype
    columns: tuple[Column, ...]
    header: bytes
    num_rows: int | None
    nodes: int
    buffers: int
    body_bytes: int | None

    def frame(self, num_rows: int) -> Frame:
        """The frame of a batch of this schema whose paths are empty."""
        header, offsets, at, number = bytearray(self.header), {}, 0, 0
        for i, length in enumerate(self._node_lengths(num_rows)):
            struct.pack_into("<qq", header, self.nodes + 16 * i, length, 0)  # no nulls
        for number, (name, nbytes) in enumerate(self._buffers(num_rows)):
            struct.pack_into("<qq", header, self.buffers + 16 * number, at, nbytes)
            if name is not None:
                offsets[name] = len(header) + at
            at += padded(nbytes)
        if self.num_rows is not None:
            struct.pack_into("<q", header, self.num_rows, num_rows)
        if self.body_bytes is not None:
            at += CHECKSUM_BYTES
            struct.pack_into("<q", header, self.body_bytes, at)
        return Frame(bytes(header), offsets, len(header) + at, crc32c(header))

    def with_paths(self, frame: Frame, path_bytes: int) -> Frame:
        """A frame with room for paths. They come last, so that all else stays."""
        assert self.body_bytes is not None, "offsets of paths are a body"  # noqa: S101
        header, nbytes = bytearray(frame.header), frame.nbytes + padded(path_bytes)
        last = self.buffers + 16 * (sum(2 + (column in ("embedding", "file_path")) for column in self.columns) - 1)
        struct.pack_into("<q", header, last + 8, path_bytes)
        struct.pack_into("<q", header, self.body_bytes, nbytes - len(header))
        return Frame(bytes(header), frame.offsets, nbytes, crc32c(header))

    def _node_lengths(self, num_rows: int) -> Iterator[int]:
        for column in self.columns:
            yield num_rows
            if column == "embedding":
                yield num_rows * self.dim

    def _buffers(self, num_rows: int) -> Iterator[tuple[str | None, int]]:
        """Every buffer in Arrow's order: its name in Frame.offsets, or None for a validity, which there is none of; its length."""
        for column in self.columns:
            yield None, 0
            if column == "embedding":
                yield None, 0
                yield "embedding", num_rows * self.dim * (4 if self.dtype == "float32" else 2)
            elif column == "file_path":
                yield "file_path", (num_rows + 1) * 4
                yield "file_path.data", 0
            else:
                yield column, num_rows * (8 if column == "index" else 4)  # cps, and further labels


_frame = lru_cache(maxsize=1024)(_Template.frame)


@lru_cache(maxsize=128)
def _template(dim: int, dtype: Dtype, columns: tuple[Column, ...], *, is_empty: bool) -> _Template:
    """Found in what Arrow writes, and checked against it for other numbers of rows: nothing here is assumed unseen.

    Empty batches have one of their own, since flatbuffers leave out what is 0. The flatbuffer tables are Arrow's Message (header,
    its third field, and bodyLength, its fourth) and RecordBatch (length, nodes, buffers).
    """
    message = _arrow_header(dim, dtype, columns, 0 if is_empty else 1, 0)
    table = 8 + struct.unpack_from("<I", message, 8)[0]
    batch = _target(message, _field(message, table, 2))
    nodes, buffers = (_target(message, _field(message, batch, number)) + 4 for number in (1, 2))  # behind their numbers
    template = _Template(
        dim, dtype, columns, message, _field(message, batch, 0), nodes, buffers, body_bytes := _field(message, table, 3)
    )
    for num_rows, path_bytes in ((0, 0),) if is_empty else ((1, 0), (2, 3), (9, 40)):
        made = template.frame(num_rows)
        if path_bytes and "file_path" in columns:
            made = template.with_paths(made, path_bytes)
        ours = bytearray(made.header)
        if body_bytes is not None:  # without the checksum's bytes, of which Arrow knows nothing
            struct.pack_into("<q", ours, body_bytes, made.nbytes - len(ours) - CHECKSUM_BYTES)
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
