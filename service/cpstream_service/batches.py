"""The hot path: from a plan to the bytes of an Arrow stream.

Every byte of an embedding is touched twice here: once by the gather, which moves it from the memory-mapped snapshot straight to its
place behind a ready-made Arrow header, and once by the checksum, while it is still in the processor's cache. The kernel's copy
into the socket is the third and last.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cpstream_client.buffers import BufferPool, Bytes
from cpstream_client.plan import Indices
from cpstream_client.wire import CHECKSUM_BYTES, Column, Dtype, batch_schema

from .frames import END_OF_STREAM, Frame, frame

CHUNK_BYTES = 2 * 1024**2
"""What one write to the socket holds at least, where there is so much: smaller writes cost up to 4 times the throughput."""

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a split's batches are gathered from. embeddings (N, D), cps (N,) float32, file_paths of length N."""

    embeddings: Floats
    cps: npt.NDArray[np.float32]
    file_paths: pa.StringArray
    names: tuple[Column, ...]

    @property
    def dim(self) -> int:
        return int(self.embeddings.shape[1])

    @property
    def dtype(self) -> Dtype:
        return "float16" if self.embeddings.dtype == np.float16 else "float32"

    def path_bytes(self, indices: Indices) -> int:
        """Length of the file paths of these samples together, in UTF-8."""
        if "file_path" not in self.names:
            return 0
        starts = np.frombuffer(self.file_paths.buffers()[1], np.int32)[self.file_paths.offset :]
        return int((starts[indices + 1] - starts[indices]).sum())

    def frame(self, num_rows: int, path_bytes: int = 0) -> Frame:
        return frame(self.dim, self.dtype, self.names, num_rows, path_bytes)

    def nbytes(self, indices: Indices) -> int:
        """Bytes of the message of a batch of these samples."""
        return self.frame(len(indices), self.path_bytes(indices)).nbytes

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one sample's embedding on the wire; 0 where the column is not asked for."""
        return self.dim * self.embeddings.itemsize if "embedding" in self.names else 0


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one batch: all of it, or a piece of a batch that is larger than a chunk. low, high: rows of the batch."""

    indices: Indices  # (B,) int64, of the whole batch
    low: int
    high: int


class ChunkWriter:
    """Writes the parts of one reply one after the other. Not to be shared: it carries a checksum from part to part."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._checksum = columns.frame(0).head_checksum

    def write(self, out: Bytes, position: int, part: Part) -> int:
        """Write a part at `position` of `out`, a multiple of 8. Returns the position behind it."""
        columns, indices = self._columns, part.indices
        frame = columns.frame(len(indices), columns.path_bytes(indices))
        if part.low == 0:
            out[position : position + len(frame.header)] = np.frombuffer(frame.header, np.uint8)
            position += len(frame.header)
            self._checksum = frame.head_checksum.copy()
        start = position
        if columns.embedding_bytes:
            position += (part.high - part.low) * columns.embedding_bytes
            rows = out[start:position].view(columns.embeddings.dtype).reshape(-1, columns.dim)
            # mode="raise" would gather elsewhere first and copy; every index comes from a checked plan or request
            np.take(columns.embeddings, indices[part.low : part.high], axis=0, out=rows, mode="clip")
        if part.high < len(indices):
            self._checksum.update(out[start:position].data)
            return position
        end = self._write_tail(out, position, frame, indices)
        if end > start:
            self._checksum.update(out[start : end - CHECKSUM_BYTES].data)
            out[end - CHECKSUM_BYTES : end] = np.frombuffer(self._checksum.intdigest().to_bytes(8, "little"), np.uint8)
        return end

    def _write_tail(self, out: Bytes, position: int, frame: Frame, indices: Indices) -> int:
        """Write everything behind the embedding rows but the checksum. Returns the end of the frame."""
        columns = self._columns
        # Where the frame would begin in `out`, had its first parts not been sent already.
        origin = position - len(indices) * columns.embedding_bytes - len(frame.header)
        end = origin + frame.nbytes
        out[position:end] = 0  # padding must not carry what the buffer held before
        values: dict[str, npt.NDArray[np.generic]] = {}
        if "cps" in columns.names:
            values["cps"] = columns.cps[indices]
        if "index" in columns.names:
            values["index"] = indices
        if "file_path" in columns.names and len(indices):
            _, offsets, data = columns.file_paths.take(pa.array(indices)).buffers()
            values["file_path"] = np.frombuffer(offsets, np.int32)[: len(indices) + 1]
            values["file_path.data"] = np.frombuffer(data, np.uint8)[: values["file_path"][-1]]
        for name, value in values.items():
            at = origin + frame.offsets[name]
            out[at : at + value.nbytes] = value.view(np.uint8)
        return end


def batch_parts(columns: Columns, batches: Iterable[Indices]) -> Iterator[Part]:
    """Cut batches that are larger than a chunk into parts of whole rows; leave the others whole."""
    rows_per_part = max(1, CHUNK_BYTES // columns.embedding_bytes) if columns.embedding_bytes else None
    for indices in batches:
        step = rows_per_part or len(indices)
        for low in range(0, len(indices), step) if len(indices) else (0,):
            yield Part(indices, low, min(low + step, len(indices)))


def part_bytes(columns: Columns, part: Part) -> int:
    """Bytes that ChunkWriter.write writes for the part."""
    frame = columns.frame(len(part.indices), columns.path_bytes(part.indices))
    nbytes = (part.high - part.low) * columns.embedding_bytes
    if part.low == 0:
        nbytes += len(frame.header)
    if part.high == len(part.indices):
        nbytes += frame.nbytes - len(frame.header) - len(part.indices) * columns.embedding_bytes
    return nbytes


def reply(columns: Columns, schema: bytes, batches: Iterable[Indices], pool: BufferPool) -> Iterator[Bytes]:
    """The bytes of an Arrow stream in chunks of about CHUNK_BYTES, each a lease of the pool. next() gathers one chunk."""
    writer = ChunkWriter(columns)
    groups = _grouped(columns, batch_parts(columns, batches))
    head, group = schema, next(groups, ([], 0))
    while True:
        parts, nbytes = group
        following = next(groups, None)
        tail = END_OF_STREAM if following is None else b""
        chunk = pool.lease(len(head) + nbytes + len(tail))
        chunk[: len(head)] = np.frombuffer(head, np.uint8)
        position = len(head)
        for part in parts:
            position = writer.write(chunk, position, part)
        chunk[position:] = np.frombuffer(tail, np.uint8)
        yield chunk
        if following is None:
            return
        del chunk  # or the pool could not have it back while the next one is being gathered
        head, group = b"", following


def _grouped(columns: Columns, parts: Iterable[Part]) -> Iterator[tuple[list[Part], int]]:
    """Parts for one write each, about CHUNK_BYTES together, with their size in bytes."""
    group: list[Part] = []
    size = 0
    for part in parts:
        nbytes = part_bytes(columns, part)
        if group and size + nbytes > CHUNK_BYTES * 5 // 4:
            yield group, size
            group, size = [], 0
        group.append(part)
        size += nbytes
    if group:
        yield group, size


def schema_message(columns: Columns, metadata: dict[str, str]) -> bytes:
    """The first message of the stream. Its length is a multiple of 8, as that of every message."""
    return _schema_message(columns.dim, columns.dtype, columns.names, tuple(metadata.items()))


@lru_cache(maxsize=256)  # requests for any indices differ only in their number
def _schema_message(dim: int, dtype: Dtype, names: tuple[Column, ...], metadata: tuple[tuple[str, str], ...]) -> bytes:
    message: bytes = batch_schema(dim, dtype, names, dict(metadata)).serialize().to_pybytes()
    return message
