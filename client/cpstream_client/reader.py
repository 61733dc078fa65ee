"""Reads an Arrow stream from a connection with one copy: from the kernel into a pooled buffer that the batch then lives in."""

import http.client
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from .buffers import BufferPool, Bytes
from .errors import CorruptedError, TransportError
from .plan import Indices
from .wire import CHECKSUM_BYTES, Column, Dtype, batch_schema

_SMALL_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as arrays, each None where its column was not asked for. Writable, and valid for as long as they are referred to.

    embeddings (B, D) float32 or float16; cps (B,) float32; index (B,) int64; file_paths: B strings.
    """

    embeddings: npt.NDArray[np.float32] | npt.NDArray[np.float16] | None
    cps: npt.NDArray[np.float32] | None
    index: Indices | None
    file_paths: list[str] | None
    num_rows: int
    nbytes: int

    def slice(self, low: int, high: int) -> "Batch":
        """Rows low to high, as views."""
        return Batch(
            None if self.embeddings is None else self.embeddings[low:high],
            None if self.cps is None else self.cps[low:high],
            None if self.index is None else self.index[low:high],
            None if self.file_paths is None else self.file_paths[low:high],
            len(range(*slice(low, high).indices(self.num_rows))),
            self.nbytes,
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reply to a request must be, or else it was damaged or answers something else."""

    dim: int
    dtype: Dtype
    columns: tuple[Column, ...]
    metadata: dict[str, str]

    @property
    def schema(self) -> pa.Schema:
        return batch_schema(self.dim, self.dtype, self.columns)


class _Body:
    """The file that Arrow's stream reader reads: of every message its mark and length by read, header and body by read_buffer."""

    closed = False

    def __init__(self, response: http.client.HTTPResponse, pool: BufferPool, url: str) -> None:
        self._response, self._pool, self._url = response, pool, url
        self.left = response.length if response.length is not None else 0
        self.body: Bytes | None = None
        self._checksum = xxhash.xxh3_64()
        self._pieces = 0

    def begin_message(self) -> None:
        self._checksum.reset()
        self._pieces = 0
        self.body = None

    def read(self, nbytes: int) -> bytes:
        return self._piece(nbytes).tobytes()

    def read_buffer(self, nbytes: int) -> pa.Buffer:
        return pa.py_buffer(self._piece(nbytes))

    def _piece(self, nbytes: int) -> Bytes:
        if nbytes > self.left:
            raise CorruptedError(f"{self._url}: a frame asks for {nbytes} bytes where {self.left} are left")
        # Pooled only where it pays; the header of a message is small.
        into = self._pool.lease(nbytes) if nbytes > _SMALL_BYTES else np.empty(nbytes, np.uint8)
        got = 0
        while got < nbytes:
            try:
                count = self._response.readinto(into[got:].data)
            except (OSError, http.client.HTTPException) as error:
                raise TransportError(f"{self._url}: {str(error) or type(error).__name__}") from error
            if not count:  # http.client says nothing of a body cut short
                raise TransportError(f"{self._url}: the connection ended {self.left - got} bytes early")
            got += count
        self.left -= nbytes
        self._pieces += 1
        if self._pieces < 4:  # the prefix in two pieces, and the header
            self._checksum.update(into.data)
        elif self._pieces == 4:
            self._verify(into)
            self.body = into
        else:  # a damaged header can make Arrow go on to another message
            raise CorruptedError(f"{self._url}: a batch is followed by something else than the next one")
        return into

    def _verify(self, body: Bytes) -> None:
        """Before Arrow sees the body: nothing is made of damaged bytes."""
        self._checksum.update(body[:-CHECKSUM_BYTES].data)
        sent = int.from_bytes(body[-CHECKSUM_BYTES:].tobytes(), "little")
        if self._checksum.intdigest() != sent:
            raise CorruptedError(f"{self._url}: a batch arrived damaged (checksum {self._checksum.hexdigest()}, sent {sent:016x})")


def read_batches(
    response: http.client.HTTPResponse, expected: Expected, rows: Iterator[int], pool: BufferPool, url: str
) -> Iterator[Batch]:
    """The batches of one reply, each verified before it is handed out. rows: how many rows each must have.

    Raises TransportError when the stream breaks, CorruptedError when it is not what it must be.
    """
    body = _Body(response, pool, url)
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(body, mode="r"))
        _check_schema(reader.schema, expected, url)
        for num_rows in rows:
            body.begin_message()
            record_batch = reader.read_next_batch()
            if record_batch.num_rows != num_rows or (body.body is None and num_rows):
                raise CorruptedError(f"{url}: a batch has {record_batch.num_rows} rows where {num_rows} were asked for")
            yield _to_batch(record_batch, body.body, url)
            del record_batch
        body.begin_message()
        if next(reader, None) is not None or body.left:
            raise CorruptedError(f"{url}: the stream goes on behind its last batch")
        response.read()  # marks the reply as ended, so that its connection can be used again
    except StopIteration:
        raise CorruptedError(f"{url}: the stream ended before its last batch") from None
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError, too; the connection's own come as TransportErrors
        raise CorruptedError(f"{url}: not an Arrow stream: {error}") from error


def _check_schema(schema: pa.Schema, expected: Expected, url: str) -> None:
    if not schema.equals(expected.schema):
        raise CorruptedError(f"{url}: the stream's schema is not the one asked for: {schema.remove_metadata()}")
    got = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
    for name, value in expected.metadata.items():
        if got.get(name) != value:
            raise CorruptedError(f"{url}: the stream says {name}={got.get(name)!r} where {value!r} was asked for")


def _to_batch(record_batch: pa.RecordBatch, body: Bytes | None, url: str) -> Batch:
    """Arrays over the body itself: Arrow's own views of it would be read-only. Raises CorruptedError when they lie elsewhere."""
    num_rows = record_batch.num_rows
    origin = pa.py_buffer(body).address if body is not None else 0

    def view(buffer: pa.Buffer, dtype: npt.DTypeLike, count: int) -> npt.NDArray[np.generic]:
        if body is None or not count:  # where an empty buffer lies means nothing
            return np.empty(0, dtype)
        offset, nbytes = buffer.address - origin, count * np.dtype(dtype).itemsize
        if not 0 <= offset <= body.nbytes - nbytes:  # Arrow converts what a damaged schema calls big-endian
            raise CorruptedError(f"{url}: a column lies outside its batch")
        return body[offset : offset + nbytes].view(dtype)

    found: dict[str, npt.NDArray[np.generic]] = {}
    file_paths = None
    for name, column in zip(record_batch.schema.names, record_batch.columns, strict=True):
        if name == "embedding":
            dtype = column.type.value_type.to_pandas_dtype()
            dim = column.type.list_size
            found[name] = view(column.buffers()[-1], dtype, num_rows * dim).reshape(num_rows, dim)
        elif name == "file_path":
            file_paths = column.to_pylist()
        else:
            found[name] = view(column.buffers()[-1], column.type.to_pandas_dtype(), num_rows)
    nbytes = body.nbytes if body is not None else 0
    return Batch(found.get("embedding"), found.get("cps"), found.get("index"), file_paths, num_rows, nbytes)  # type: ignore[arg-type]
