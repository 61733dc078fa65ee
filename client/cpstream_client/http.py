"""Client: what the service holds, and batches of it as numpy or Arrow, without torch.

Small JSON replies and the batch stream share one HTTP layer (connection.py), and so one way of failing, retrying and
authorising.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from .buffers import BufferPool
from .connection import Connection
from .errors import CorruptedError, CpstreamError
from .fetch import Course, EpochFetcher, Service, cut
from .reader import Batch, Expected, read_batches
from .retry import Patience, Retry
from .wire import (
    API_PREFIX,
    ARROW_STREAM,
    DEFAULT_COLUMNS,
    JSON,
    OCTET_STREAM,
    AlignmentReport,
    BatchQuery,
    Column,
    Dtype,
    SplitInfo,
    batch_schema,
    split_path,
)

T = TypeVar("T")


class Client:
    """A service, seen from a machine that trains or looks. Picklable; connections open lazily, one a thread and process.

    url: of the service, or of several replicas of it; token: as the service's --token (default: CPSTREAM_TOKEN);
    timeout_s: seconds without a byte after which a connection counts as broken; retry: how long to keep trying.

    Every method raises TransportError when the service cannot be reached and ServiceError when it refuses.
    """

    def __init__(
        self, url: str | Sequence[str], *, token: str | None = None, timeout_s: float = 30.0, retry: Retry | None = None
    ) -> None:
        self.service = Service.at(url, token or os.environ.get("CPSTREAM_TOKEN"), timeout_s, retry)
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._threads = threading.local()
        self._connections: list[Connection] = []
        self._pool = BufferPool(max_idle=8)

    def __getstate__(self) -> Service:
        return self.service

    def __setstate__(self, service: Service) -> None:
        self.service = service
        self._open()

    def __repr__(self) -> str:
        return f"Client({', '.join(endpoint.url for endpoint in self.service.endpoints)})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; another call opens new ones."""
        for connection in self._connections:
            connection.close()
        self._open()

    # What the service holds

    def splits(self) -> list[SplitInfo]:
        """All splits, as served now."""
        return [SplitInfo.from_json(body) for body in self._json(f"{API_PREFIX}/splits")["splits"]]

    def split(self, split: str, *, fingerprint: str | None = None) -> SplitInfo:
        """One split, as served now. Raises NotFoundError when there is no such split, DatasetChanged when it is other data."""
        return SplitInfo.from_json(self._json(split_path(split), {"fingerprint": fingerprint} if fingerprint else None))

    def alignment(self, split: str) -> AlignmentReport:
        """What was matched, and what was dropped and why."""
        return AlignmentReport.from_json(self._json(split_path(split, "alignment")))

    def rows(self, split: str, offset: int = 0, length: int = 100) -> dict[str, Any]:
        """A page of index, file_path and cps, with the total, as JSON."""
        page: dict[str, Any] = self._json(split_path(split, "rows"), {"offset": str(offset), "length": str(length)})
        return page

    def plan(self, split: str, step: int, query: BatchQuery | None = None) -> dict[str, Any]:
        """The audit of a batch, as JSON: which samples every rank gets at this step of the query's epoch."""
        audit: dict[str, Any] = self._json(split_path(split, "plan"), {**(query or BatchQuery()).to_params(), "step": str(step)})
        return audit

    def file_paths(self, split: str, *, info: SplitInfo | None = None) -> list[str]:
        """The file paths of a split, by index. info: the split as known, to pin its data."""
        pin = {"fingerprint": info.fingerprint} if info is not None else None
        paths: list[str] = self._json(split_path(split, "file_paths.json"), pin)
        return paths

    # Samples

    def batches(self, split: str, query: BatchQuery | None = None, *, info: SplitInfo | None = None) -> Iterator[Batch]:
        """The batches of a query, in order, verified, resumed after faults. info: the split as known, to pin its data."""
        info = info or self.split(split)
        course = Course(query or BatchQuery(), info)
        fetcher = EpochFetcher(self.service, course, self._pool)
        return cut(iter(fetcher), course)

    def record_batches(self, split: str, query: BatchQuery | None = None) -> Iterator[pa.RecordBatch]:
        """The same as Arrow record batches with the columns of the query."""
        query = query or BatchQuery()
        info = self.split(split)
        schema = batch_schema(info.embedding_dim, query.dtype, query.columns)
        for batch in self.batches(split, query, info=info):
            yield _to_arrow(batch, schema)

    def take(
        self,
        split: str,
        indices: npt.ArrayLike,
        *,
        dtype: Dtype = "float32",
        columns: tuple[Column, ...] = DEFAULT_COLUMNS,
        info: SplitInfo | None = None,
    ) -> Batch:
        """The samples at any indices, in the order asked. indices (B,) integers in [0, num_samples).

        Raises InvalidRequestError (index-out-of-range) when one is outside the split.
        """
        wanted = np.ascontiguousarray(indices, dtype="<i8").reshape(-1)
        info = info or self.split(split)
        query = BatchQuery(batch_size=max(1, len(wanted)), dtype=dtype, columns=(*columns, "index"))
        params = {"dtype": dtype, "columns": ",".join(query.columns), "fingerprint": info.fingerprint}
        metadata = {"split": split, "fingerprint": info.fingerprint, "num_rows": str(len(wanted))}
        expected = Expected(info.embedding_dim, dtype, query.columns, metadata)

        def ask(connection: Connection) -> Batch:
            connection.send("POST", split_path(split, "take"), params, ARROW_STREAM, wanted.tobytes(), OCTET_STREAM)
            response = connection.receive(ARROW_STREAM)
            (batch,) = read_batches(response, expected, iter([len(wanted)]), self._pool, connection.url)
            if batch.index is None or not np.array_equal(batch.index, wanted):
                raise CorruptedError(f"{connection.url}: the reply holds other samples than those asked for")
            return batch if "index" in columns else replace(batch, index=None)

        return self._retried(ask)

    def load(self, split: str, *, dtype: Dtype = "float32", info: SplitInfo | None = None) -> Batch:
        """A whole split: embeddings (N, D), cps (N,), index (N,). A progress bar appears when it takes longer than 2 s."""
        info = info or self.split(split)
        n = info.num_samples
        embeddings = np.empty((n, info.embedding_dim), dtype)
        cps = np.empty(n, np.float32)
        at = 0
        with tqdm(total=n, desc=f"downloading {split}", unit=" samples", unit_scale=True, delay=2, leave=False) as bar:
            for batch in self.batches(split, BatchQuery(batch_size=1024, dtype=dtype, columns=("embedding", "cps")), info=info):
                embeddings[at : at + batch.num_rows] = batch.embeddings
                cps[at : at + batch.num_rows] = batch.cps
                at += batch.num_rows
                bar.update(batch.num_rows)
        return Batch(embeddings, cps, np.arange(n, dtype=np.int64), None, n, embeddings.nbytes + cps.nbytes)

    def _json(self, path: str, params: dict[str, str] | None = None) -> Any:
        def ask(connection: Connection) -> Any:
            connection.send("GET", path, params or {}, JSON)
            body = connection.read(connection.receive(JSON))
            try:
                return json.loads(body)
            except ValueError as error:
                raise CorruptedError(f"{connection.url}: not JSON: {error}") from error

        return self._retried(ask)

    def _retried(self, ask: Callable[[Connection], T]) -> T:
        patience = Patience(self.service.retry, len(self.service.endpoints))
        while True:
            connection = self._connection()
            try:
                result = ask(connection)
                connection.release()
            except CpstreamError as error:
                self._drop(connection)
                time.sleep(patience.wait_s(error))
            except BaseException:
                self._drop(connection)  # half a reply may be on its way
                raise
            else:
                return result

    def _connection(self) -> Connection:
        if self._process != os.getpid():  # forked: the parent's sockets are not ours
            self._open()
        connection: Connection | None = getattr(self._threads, "connection", None)
        if connection is None:
            self._threads.turn = getattr(self._threads, "turn", -1) + 1
            connection = self._threads.connection = self.service.connect(self._threads.turn)
            self._connections.append(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._threads.connection = None
        if connection in self._connections:
            self._connections.remove(connection)


def _to_arrow(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if field.name == "embedding":
            values = pa.array(batch.embeddings.reshape(-1), field.type.value_type)  # type: ignore[union-attr]
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
        else:
            value = {"cps": batch.cps, "index": batch.index, "file_path": batch.file_paths}[field.name]
            arrays.append(pa.array(value, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
