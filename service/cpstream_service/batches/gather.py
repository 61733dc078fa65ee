"""The hot path: from a plan to the bytes of an Arrow stream.

Every byte of an embedding is touched twice here: once by the gather, which moves it from the memory-mapped snapshot straight to its
place behind a ready-made Arrow header, and once by the checksum, while it is still in the processor's cache. The kernel's copy
into the socket is the third and last.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from crc32c import crc32c

from cpstream_client.buffers import BufferPool, Bytes
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.contract.plan import Indices, Plan
from cpstream_client.contract.wire import CHECKSUM_BYTES, BatchQuery, Column, Dtype, batch_schema, stream_metadata

from .account import Account
from .frames import END_OF_STREAM, Frame, frame, padded
from .paths import paths_of

CHUNK_BYTES = 2 * 1024**2
"""What one write to the socket holds at least, where there is so much: smaller writes cost up to 4 times the throughput."""

CHUNK_FRAMES = 32
"""And at most: a frame takes some 10 microseconds, however small, and a chunk is what all others wait for."""
_ROWS_TOGETHER = 8192
"""Of which paths are measured at once, if their batches are small."""

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What a split's batches are gathered from. embeddings (N, D), cps (N,) float32, file_paths of length N, labels by name as cps.

    embedding_bytes: of one sample on the wire; 0 where the column is not asked for.
    """

    embeddings: Floats
    cps: npt.NDArray[np.float32]
    file_paths: pa.StringArray
    names: tuple[Column, ...]
    labels: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    floats: tuple[tuple[str, npt.NDArray[np.float32]], ...] = field(init=False)  # the columns of float32 that are asked for
    dim: int = field(init=False)
    dtype: Dtype = field(init=False)
    embedding_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        fixed = partial(object.__setattr__, self)
        # Plain arrays: each slice of a np.memmap runs a page of Python.
        fixed("embeddings", np.asarray(self.embeddings))
        fixed("cps", np.asarray(self.cps))
        floats = {"cps": self.cps, **self.labels}
        fixed("floats", tuple((name, np.asarray(floats[name])) for name in self.names if name in floats))
        fixed("dim", int(self.embeddings.shape[1]))
        fixed("dtype", "float16" if self.embeddings.dtype == np.float16 else "float32")
        fixed("embedding_bytes", self.dim * self.embeddings.itemsize if "embedding" in self.names else 0)

    def frame(self, num_rows: int, path_bytes: int = 0) -> Frame:
        return frame(self.dim, self.dtype, self.names, num_rows, path_bytes)

    def frame_of(self, indices: Indices) -> Frame:
        """The frame of a batch of these samples."""
        return self.frame(len(indices), int(self._path_bytes(indices).sum()) if "file_path" in self.names else 0)

    def frames_bytes(self, plan: Plan, order: Indices, steps: range) -> int:
        """How long the frames of these steps' batches are together. Makes none of them but the longest and the last."""
        if not steps:
            return 0
        first, (low, high) = plan.step_bounds(steps[0])[0], plan.step_bounds(steps[-1])  # only the last batch can be short
        nbytes = self.frame(high - low).nbytes
        if len(steps) > 1:
            nbytes += self.frame(plan.batch_size).nbytes * (len(steps) - 1)
        if "file_path" in self.names and first < high:
            each = self._path_bytes(plan.slice_of(order, first, high))  # (rows,) of all batches in between
            batches = np.add.reduceat(each, np.arange(0, len(each), plan.batch_size))[:: steps.step]
            nbytes += int(padded(batches).sum())
        return nbytes

    def chosen_bytes(self, batches: IndexBatches) -> int:
        """How long the frames of these batches are together. Makes one frame for each size that occurs."""
        sizes, counts = np.unique(batches.sizes, return_counts=True)
        nbytes: int = sum(self.frame(size).nbytes * count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True))
        if "file_path" in self.names:
            nbytes += int(padded(self._path_bytes_of(batches.indices, batches.sizes)).sum())
        return nbytes

    def path_bytes(self, batches: Sequence[Indices]) -> list[int]:
        """How long the paths of each batch are together."""
        found: list[int] = self._path_bytes_of(np.concatenate(batches), [len(indices) for indices in batches]).tolist()
        return found

    def _path_bytes_of(self, indices: Indices, sizes: Indices | list[int]) -> Indices:
        ends = np.concatenate([[0], np.cumsum(self._path_bytes(indices))])  # of the paths of all samples before
        found: Indices = np.diff(ends[np.concatenate([[0], np.cumsum(sizes)])])
        return found

    def _path_bytes(self, indices: Indices) -> Indices:
        """Lengths of these samples' paths, in bytes. (B,) int64."""
        starts = np.frombuffer(self.file_paths.buffers()[1], np.int32)[self.file_paths.offset :]
        return (starts[indices + 1] - starts[indices]).astype(np.int64)


class Part(NamedTuple):  # made in 0.3 microseconds, where a frozen dataclass takes 0.7
    """Some rows of one batch: all of it, or a piece of a batch that is larger than a chunk. low, high: rows of the batch."""

    indices: Indices  # (B,) int64, of the whole batch
    frame: Frame
    low: int
    high: int
    nbytes: int  # of what ChunkWriter.write writes for it


class ChunkWriter:
    """Writes the parts of one reply one after the other. Not to be shared: it carries a checksum from part to part.

    Memoryviews and bare array methods, since a small batch takes no longer to gather than ten calls of numpy's wrappers.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._checksum = columns.frame(0).head_checksum
        self._paths: Iterator[tuple[memoryview, memoryview]] = iter(())  # of each batch that is written next: offsets, and data

    def prepare(self, parts: Sequence[Part]) -> None:
        """Gather the paths of all these parts, which are written next: Arrow takes as long for one as for dozens."""
        batches = [part.indices for part in parts if part.high == len(part.indices)]
        if "file_path" in self._columns.names and batches:
            self._paths = paths_of(self._columns.file_paths, batches)

    def write(self, out: memoryview, position: int, part: Part) -> int:
        """Write a part at `position` of `out`, a multiple of 8. Returns the position behind it."""
        columns, frame, num_rows = self._columns, part.frame, part.high - part.low
        if part.low == 0:
            out[position : position + len(frame.header)] = frame.header
            position += len(frame.header)
            self._checksum = frame.head_checksum
        start = position
        if columns.embedding_bytes:
            rows = np.ndarray((num_rows, columns.dim), columns.embeddings.dtype, out, position)
            # mode="raise" would gather elsewhere first and copy; every index comes from a checked plan or request
            columns.embeddings.take(part.indices[part.low : part.high], 0, rows, "clip")
            position += num_rows * columns.embedding_bytes
        if part.high < len(part.indices):
            self._checksum = crc32c(out[start:position], self._checksum)
            return position
        end = self._write_tail(out, position, part)
        if end > start:
            self._checksum = crc32c(out[start : end - CHECKSUM_BYTES], self._checksum)
            out[end - CHECKSUM_BYTES : end] = self._checksum.to_bytes(CHECKSUM_BYTES, "little")
        return end

    def _write_tail(self, out: memoryview, position: int, part: Part) -> int:
        """Write everything behind the embedding rows but the checksum. Returns the end of the frame."""
        columns, frame, indices = self._columns, part.frame, part.indices
        # Where the frame would begin in `out`, had its first parts not been sent already.
        origin = position - len(indices) * columns.embedding_bytes - len(frame.header)
        end = origin + frame.nbytes
        out[position:end] = bytes(end - position)  # padding must not carry what the buffer held before
        for name, floats in columns.floats if len(indices) else ():
            floats.take(indices, 0, np.ndarray(len(indices), np.float32, out, origin + frame.offsets[name]), "clip")
        if "index" in columns.names and len(indices):
            np.ndarray(len(indices), np.int64, out, origin + frame.offsets["index"])[:] = indices
        if "file_path" in columns.names:
            offsets, paths = next(self._paths)
            if len(indices):
                at = origin + frame.offsets["file_path"]
                out[at : at + len(offsets)] = offsets
                at = origin + frame.offsets["file_path.data"]
                out[at : at + len(paths)] = paths
        return end


@dataclass(slots=True)
class ChunkLimit:
    """What a chunk holds about, in bytes, from the next but one on. It may change while a reply is being made."""

    nbytes: int = CHUNK_BYTES


def batch_parts(columns: Columns, batches: Iterable[Indices], limit: ChunkLimit) -> Iterator[Part]:
    """Cut batches that are larger than a chunk into parts of whole rows; leave the others whole."""
    for indices, framed in _framed(columns, batches):
        n = len(indices)
        tail_bytes = framed.nbytes - len(framed.header) - n * columns.embedding_bytes
        low, high = 0, -1
        while high < n:
            high = min(low + max(1, limit.nbytes // columns.embedding_bytes), n) if columns.embedding_bytes else n
            ends_bytes = (len(framed.header) if low == 0 else 0) + (tail_bytes if high == n else 0)
            yield Part(indices, framed, low, high, (high - low) * columns.embedding_bytes + ends_bytes)
            low = high


def _framed(columns: Columns, batches: Iterable[Indices]) -> Iterator[tuple[Indices, Frame]]:
    """Each batch with its frame."""
    if "file_path" not in columns.names:
        for indices in batches:
            yield indices, columns.frame(len(indices))
        return
    for some in _together(batches):
        for indices, path_bytes in zip(some, columns.path_bytes(some), strict=True):
            yield indices, columns.frame(len(indices), path_bytes)


def _together(batches: Iterable[Indices]) -> Iterator[list[Indices]]:
    """The batches by dozens, if they are small."""
    some: list[Indices] = []
    rows = 0
    for indices in batches:
        some.append(indices)
        rows += len(indices)
        if len(some) == CHUNK_FRAMES or rows >= _ROWS_TOGETHER:
            yield some
            some, rows = [], 0
    if some:
        yield some


def reply(
    columns: Columns,
    schema: bytes,
    batches: Iterable[Indices],
    pool: BufferPool,
    account: Account | None = None,
    limit: ChunkLimit | None = None,
) -> Iterator[Bytes]:
    """The bytes of an Arrow stream in chunks of about CHUNK_BYTES, or the limit's, each a lease of the pool. next() gathers one.

    account: takes note of each.
    """
    writer, limit = ChunkWriter(columns), limit or ChunkLimit()
    groups = _grouped(batch_parts(columns, batches, limit), limit)
    head, group = schema, next(groups, [])
    while True:
        following = next(groups, None)
        tail = END_OF_STREAM if following is None else b""
        chunk = pool.lease(len(head) + sum(part.nbytes for part in group) + len(tail))
        out = chunk.data
        out[: len(head)] = head
        position = len(head)
        writer.prepare(group)
        for part in group:
            position = writer.write(out, position, part)
        out[position:] = tail
        if account is not None:
            whole = [len(part.indices) for part in group if part.high == len(part.indices)]
            account.chunk(len(chunk), sum(whole), len(whole))
        yield chunk
        if following is None:
            return
        del chunk, out  # or the pool could not have them back while the next chunk is being gathered
        head, group = b"", following


def _grouped(parts: Iterable[Part], limit: ChunkLimit) -> Iterator[list[Part]]:
    """Parts for one write each: about as many bytes as the limit together, and not too many."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if len(group) == CHUNK_FRAMES or (group and size + part.nbytes > limit.nbytes * 5 // 4):
            yield group
            group, size = [], 0
        group.append(part)
        size += part.nbytes
    if group:
        yield group


@lru_cache(maxsize=256)  # requests for any indices differ only in their number
def schema_message(dim: int, split: str, fingerprint: str, query: BatchQuery, num_rows: int, num_batches: int) -> bytes:
    """The first message of the stream. Its length is a multiple of 8, as that of every message."""
    metadata = stream_metadata(split, fingerprint, query, num_rows, num_batches)
    message: bytes = batch_schema(dim, query.dtype, query.columns, metadata).serialize().to_pybytes()
    return message
