"""From the messages of an Arrow stream to batches: arrays that live in the buffer into which the kernel copied them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..buffers import Bytes
from ..contract.plan import Indices
from ..contract.wire import Column, Dtype, batch_schema
from ..errors import CorruptedError
from ..transport.endpoints import Endpoint
from ..transport.replies import Reply
from .messages import Layout, Memory, Messages


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as arrays, each None where its column was not asked for. Writable, and valid for as long as they are referred to.

    embeddings (B, D) float32 or float16; cps (B,) float32; index (B,) int64; file_paths: B strings. labels: further ones that were
    asked for, by name, each (B,) float32, NaN where the sample has none.
    """

    embeddings: npt.NDArray[np.float32] | npt.NDArray[np.float16] | None
    cps: npt.NDArray[np.float32] | None
    index: Indices | None
    file_paths: list[str] | None
    num_rows: int
    nbytes: int
    labels: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def slice(self, low: int, high: int) -> "Batch":
        """Rows low to high, as views."""
        return Batch(
            None if self.embeddings is None else self.embeddings[low:high],
            None if self.cps is None else self.cps[low:high],
            None if self.index is None else self.index[low:high],
            None if self.file_paths is None else self.file_paths[low:high],
            len(range(*slice(low, high).indices(self.num_rows))),
            self.nbytes,
            {name: values[low:high] for name, values in self.labels.items()},
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of the same columns as one, in this order."""
    if len(batches) == 1:
        return batches[0]

    def together(parts: list[Any]) -> Any:
        return None if parts[0] is None else np.concatenate(parts)

    return Batch(
        together([batch.embeddings for batch in batches]),
        together([batch.cps for batch in batches]),
        together([batch.index for batch in batches]),
        None if batches[0].file_paths is None else [path for batch in batches for path in batch.file_paths or ()],
        sum(batch.num_rows for batch in batches),
        sum(batch.nbytes for batch in batches),
        {name: together([batch.labels[name] for batch in batches]) for name in batches[0].labels},
    )


@dataclass(frozen=True, slots=True)
class Expected:
    """What the reply to a request must be, or else it was damaged or answers something else."""

    dim: int
    dtype: Dtype
    columns: tuple[Column, ...]
    metadata: dict[str, str]


def read_batches(reply: Reply, endpoint: Endpoint, expected: Expected, rows: Iterable[int], memory: Memory) -> Iterator[Batch]:
    """The batches of one reply of an endpoint, each verified before it is handed out. rows: how many rows each must have.

    Raises TransportError when the stream breaks, CorruptedError when it is not what it must be.
    """
    url = reply.url
    messages = Messages(reply, memory, url, (endpoint.url, expected.dim, expected.dtype, expected.columns))
    try:
        metadata = tuple(expected.metadata.items())
        messages.schema = _checked_schema(messages.schema_header(), expected.dim, expected.dtype, expected.columns, metadata, url)
        for num_rows in rows:
            layout, body, record_batch = messages.record_batch(num_rows)
            yield _to_batch(layout, body, record_batch)
            del body, record_batch
        messages.end()
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError, too; the connection's own come as TransportErrors
        raise CorruptedError(f"{url}: not an Arrow stream: {' '.join(str(error).split())[:300]}") from error


@lru_cache(maxsize=64)  # for random access, whose replies all begin with the same bytes
def _checked_schema(
    header: bytes, dim: int, dtype: Dtype, columns: tuple[Column, ...], metadata: tuple[tuple[str, str], ...], url: str
) -> pa.Schema:
    """The schema that a stream begins with. Raises CorruptedError when it is not that of the reply asked for."""
    schema = pa.ipc.read_schema(pa.py_buffer(header))
    if not schema.equals(_schema(dim, dtype, columns)):
        got = " ".join(str(schema.remove_metadata()).split())
        raise CorruptedError(f"{url}: the stream's schema is not the one asked for: {got[:300]!r}")
    said = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in (schema.metadata or {}).items()}
    for name, value in metadata:
        if said.get(name) != value:
            other = said.get(name)
            raise CorruptedError(f"{url}: the stream says {name}={other and other[:300]!r} where {value!r} was asked for")
    return schema


@lru_cache(maxsize=64)
def _schema(dim: int, dtype: Dtype, columns: tuple[Column, ...]) -> pa.Schema:
    return batch_schema(dim, dtype, columns)


def _to_batch(layout: Layout, body: Bytes, record_batch: pa.RecordBatch | None) -> Batch:
    """Arrays over the body itself: Arrow's own views of it would be read-only, and take longer to make."""
    found: dict[str, Any] = {
        column.name: np.ndarray(column.shape, column.dtype, body.data, column.begin) for column in layout.columns
    }
    file_paths = None
    if record_batch is not None and layout.has_strings:
        paths = record_batch.column("file_path")
        paths.validate(full=True)  # Arrow believes the offsets, wherever they lead
        file_paths = paths.to_pylist()
    fixed = found.pop("embedding", None), found.pop("cps", None), found.pop("index", None)
    return Batch(*fixed, file_paths, layout.num_rows, body.nbytes, found)


def to_arrow(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of the schema."""
    arrays = []
    for column in schema:
        if column.name == "embedding":
            values = pa.array(batch.embeddings.reshape(-1), column.type.value_type)  # type: ignore[union-attr]
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=column.type))
        else:
            value = {"cps": batch.cps, "index": batch.index, "file_path": batch.file_paths, **batch.labels}[column.name]
            arrays.append(pa.array(value, column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
