"""Client: what the service holds, and batches of it as numpy or Arrow, without torch.

Small JSON replies and the batch stream share one HTTP layer (transport/), and so one way of failing, retrying and authorising.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .buffers import BufferPool
from .contract.bodies import AlignmentReport, PlanStep, Rows, SplitInfo, SplitList
from .contract.plan import Indices
from .contract.versions import SplitDifference
from .contract.wire import (
    API_PREFIX,
    ARROW_STREAM,
    DEFAULT_COLUMNS,
    JSON,
    OCTET_STREAM,
    BatchQuery,
    Column,
    Dtype,
    batch_schema,
    split_path,
)
from .errors import B, CorruptedError, CpstreamError, DatasetChanged, TransportError, UnavailableError
from .progress import shown
from .published import NOTHING, Published, Sent
from .stream.course import Course, cut, trim
from .stream.fetch import EpochFetcher
from .stream.messages import Memory
from .stream.reader import Batch, Expected, joined, read_batches, to_arrow
from .stream.sizes import sizes_of
from .tables import Tables
from .transport.endpoints import Endpoint
from .transport.options import (
    Auth,
    Cert,
    ClientOptions,
    Headers,
    Hooks,
    HttpOptions,
    MakeHttp,
    Proxy,
    Timeout,
    Verify,
    given_cert,
    given_token,
    given_verify,
    timeouts,
)
from .transport.pace import MAX_CONNECTIONS
from .transport.retry import Patience, Retry
from .transport.service import Service

T = TypeVar("T")
MAX_INDICES = 8 * 1024**2
"""Of one request: its body has at most 64 MiB."""


class Client(Tables, Published):
    """A service, seen from a machine that trains or looks. Picklable; connections open lazily, per process.

    url: of the service, or of several replicas of it. token: as the service's --token (default: CPSTREAM_TOKEN, or what the file
    that CPSTREAM_TOKEN_FILE names holds). timeout: seconds without a byte after which a connection counts as broken (30), or an
    httpx.Timeout; timeout_s is its older name. retry: how long to keep trying. max_connections: at most so many at once a stream of
    batches; it takes as many as the path needs, one in a local network.

    As httpx.Client takes them: verify (the path of a CA's certificate, an ssl.SSLContext, or False; by default CPSTREAM_CA_BUNDLE,
    or the system's CAs), cert (a client certificate; by default CPSTREAM_CLIENT_CERT and CPSTREAM_CLIENT_KEY), proxy, auth,
    headers, event_hooks. HTTP_PROXY and .netrc are ignored. http: a function that makes another httpx.Client, called once a
    process, or such a client itself, for this process alone.

    Every method raises TransportError when the service cannot be reached and ServiceError when it refuses.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        token: str | None = None,
        verify: Verify = True,
        cert: Cert | None = None,
        proxy: Proxy | None = None,
        auth: Auth | None = None,
        headers: Headers | None = None,
        event_hooks: Hooks | None = None,
        timeout: Timeout | None = None,
        timeout_s: float | None = None,
        http: MakeHttp | None = None,
        retry: Retry | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        receive_s, connect_s = timeouts(timeout, timeout_s, http)
        options = HttpOptions(
            token=token or (given_token() if auth is None else None),
            verify=given_verify(verify) if http is None else verify,
            cert=given_cert(cert) if http is None else cert,
            proxy=proxy,
            auth=auth,
            headers=headers,
            event_hooks=event_hooks,
            http=http,
            timeout_s=receive_s,
            connect_timeout_s=connect_s,
        )
        self.service = Service.at(url, options, retry, max_connections)
        self._memory = Memory(BufferPool(max_idle=8))

    def __getstate__(self) -> Service:
        return self.service

    def __setstate__(self, service: Service) -> None:
        self.service = service
        self._memory = Memory(BufferPool(max_idle=8))

    def __repr__(self) -> str:
        return f"Client({', '.join(endpoint.url for endpoint in self.service.endpoints)})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; another call opens new ones."""
        self.service.sessions.close()

    # What the service holds

    def splits(self) -> list[SplitInfo]:
        """All splits, as served now."""
        return list(self._json(f"{API_PREFIX}/splits", SplitList).splits)

    def split(self, split: str, *, fingerprint: str | None = None) -> SplitInfo:
        """One split, as served now. Raises NotFoundError when there is no such split, DatasetChanged when it is other data."""
        return self._json(split_path(split), SplitInfo, {"fingerprint": fingerprint} if fingerprint else {})

    def check_unchanged(self, info: SplitInfo) -> None:
        """Raises DatasetChanged when the service holds other data of this split now. Asks once, without retrying."""
        self._json(split_path(info.split), SplitInfo, {"fingerprint": info.fingerprint}, Retry(timeout_s=0))

    def check_while_there(self, info: SplitInfo) -> None:
        """As check_unchanged, for who has the samples already: a service that is away cannot refuse them."""
        with suppress(TransportError, UnavailableError):
            try:
                self.check_unchanged(info)
            except DatasetChanged:  # of one endpoint, at this moment
                retry = self.service.retry
                patience = replace(retry, timeout_s=min(retry.timeout_s, max(retry.changed_timeout_s, retry.max_delay_s)))
                self._json(split_path(info.split), SplitInfo, {"fingerprint": info.fingerprint}, patience)

    def alignment(self, split: str) -> AlignmentReport:
        """What was matched, and what was dropped and why."""
        return self._json(split_path(split, "alignment"), AlignmentReport)

    def rows(self, split: str, offset: int = 0, length: int = 100) -> Rows:
        """A page of samples, with index, file_path and cps, and the total."""
        return self._json(split_path(split, "rows"), Rows, {"offset": str(offset), "length": str(length)})

    def diff(self, split: str, old: str, new: str | None = None) -> SplitDifference:
        """What changed between two versions that the service holds, by their fingerprints. new: by default the current one's."""
        return self._json(split_path(split, "diff"), SplitDifference, {"from": old} | ({"to": new} if new else {}))

    def plan(self, split: str, step: int, query: BatchQuery | None = None) -> PlanStep:
        """The audit of a batch: which samples every rank gets at this step of the query's epoch."""
        every_rank = replace(
            query or BatchQuery(), rank=0, limit=None, worker=0, num_workers=1, dtype="float32", columns=DEFAULT_COLUMNS
        )
        return self._json(split_path(split, "plan"), PlanStep, {**every_rank.to_params(), "step": str(step)})

    def file_paths(self, split: str, *, info: SplitInfo | None = None) -> list[str]:
        """The file paths of a split, by index. info: the split as known, to pin its data."""
        paths: list[str] = []
        for batch in self.whole(("file_path",), info or self.split(split)):
            paths += batch.file_paths or ()
        return paths

    # Samples

    def batches(
        self, split: str, query: BatchQuery | None = None, *, info: SplitInfo | None = None, **parameters: Any
    ) -> Iterator[Batch]:
        """The batches of a query, in order, verified, resumed after faults.

        parameters: fields of the query, such as batch_size=256, instead of it or to change it. info: the split as known, to pin its
        data. Raises ValueError for a parameter that is out of range, and for a column that the split does not have.
        """
        query = replace(query or BatchQuery(), **parameters)
        course = Course(query, info or self.split(split))
        return cut(self._records(course), course.batch_size)

    def whole(self, columns: tuple[Column, ...], info: SplitInfo, dtype: Dtype = "float32") -> Iterator[Batch]:
        """All samples of a split by index, in batches of whatever size comes best."""
        return self._records(Course(BatchQuery(batch_size=1, dtype=dtype, columns=columns), info))

    def _records(self, course: Course) -> Iterator[Batch]:
        workers = course.info.workers or 1
        return trim(EpochFetcher(self.service, course, self._memory, turn=os.getpid(), workers=workers), course)

    def record_batches(self, split: str, query: BatchQuery | None = None, **parameters: Any) -> Iterator[pa.RecordBatch]:
        """The same as Arrow record batches with the columns of the query."""
        query = replace(query or BatchQuery(), **parameters)
        info = self.split(split)
        query.check_columns(info.labels)
        schema = batch_schema(info.embedding_dim, query.dtype, query.columns)
        for batch in self.batches(split, query, info=info):
            yield to_arrow(batch, schema)

    def take(
        self,
        split: str,
        indices: npt.ArrayLike,
        *,
        dtype: Dtype = "float32",
        columns: tuple[Column, ...] = DEFAULT_COLUMNS,
        info: SplitInfo | None = None,
    ) -> Batch:
        """The samples at any indices, in the order asked. indices (B,) integers in [0, num_samples). By one request, if it may be.

        Raises InvalidRequestError (index-out-of-range) when one is outside the split, TypeError when they are not integers.
        """
        given = np.asarray(indices)
        if given.size and given.dtype.kind not in "iu":
            raise TypeError(f"the indices are {given.dtype}; they must be whole numbers")
        wanted = np.ascontiguousarray(given, dtype="<i8").reshape(-1)
        info = info or self.split(split)
        query = BatchQuery(dtype=dtype, columns=(*columns, "index"))
        query.check_columns(info.labels)
        most = min(sizes_of(dtype, query.columns, info).rows() or MAX_INDICES, MAX_INDICES)
        parts = [wanted[low : low + most] for low in range(0, len(wanted), most)] or [wanted]
        batch = joined([self._take(part, query, info) for part in parts])
        return batch if "index" in columns else replace(batch, index=None)

    def _take(self, wanted: Indices, query: BatchQuery, info: SplitInfo) -> Batch:
        """By one request. wanted (B,) little-endian int64; the query's columns hold index."""
        body = wanted.tobytes()
        path = split_path(info.split, "take")
        params = {"dtype": query.dtype, "columns": ",".join(query.columns), "fingerprint": info.fingerprint}
        metadata = {"split": info.split, "fingerprint": info.fingerprint, "num_rows": str(len(wanted))}
        expected = Expected(info.embedding_dim, query.dtype, query.columns, metadata)

        def ask(endpoint: Endpoint) -> Batch:
            with self.service.ask(endpoint, "POST", path, params, ARROW_STREAM, body, OCTET_STREAM) as reply:
                (batch,) = read_batches(reply, endpoint, expected, [len(wanted)], self._memory)
            if batch.index is None or batch.index.tobytes() != body:
                raise CorruptedError(f"{reply.url}: the reply holds other samples than those asked for")
            return batch

        return self._retried(ask, self.service.retry)

    def load(self, split: str, *, dtype: Dtype = "float32", info: SplitInfo | None = None) -> Batch:
        """A whole split: embeddings (N, D), cps (N,), index (N,). At a terminal, a bar shows how far it is."""
        info = info or self.split(split)
        n = info.num_samples
        embeddings = np.empty((n, info.embedding_dim), dtype)
        cps = np.empty(n, np.float32)
        at = 0
        for batch in shown(self.whole(("embedding", "cps"), info, dtype), f"downloading {split}", n):
            embeddings[at : at + batch.num_rows] = batch.embeddings
            cps[at : at + batch.num_rows] = batch.cps
            at += batch.num_rows
        return Batch(embeddings, cps, np.arange(n, dtype=np.int64), None, n, embeddings.nbytes + cps.nbytes)

    def _json(self, path: str, kind: type[B], params: Mapping[str, str] | None = None, retry: Retry | None = None) -> B:
        return self._asked("GET", path, kind, params or {}, retry=retry)

    def _asked(
        self, method: str, path: str, kind: type[B], params: Mapping[str, str], sent: Sent = NOTHING, retry: Retry | None = None
    ) -> B:
        def ask(endpoint: Endpoint) -> B:
            asked = self.service.send(endpoint, method, path, params, JSON, *sent)
            kind.model_rebuild()  # pydantic's parser, which takes 40 ms to make and is made once, while the reply is on its way
            with asked.reply() as reply:
                return reply.read_json(kind)

        return self._retried(ask, retry or self.service.retry)

    def _retried(self, ask: Callable[[Endpoint], T], retry: Retry) -> T:
        replicas = self.service.replicas
        patience = Patience(retry, len(replicas), is_contact=not replicas.met)
        while True:
            endpoint = replicas.choose(os.getpid())  # so that the processes of a machine spread over the endpoints
            try:
                result = ask(endpoint)
            except CpstreamError as error:
                replicas.failed(endpoint)
                time.sleep(patience.wait_s(error, endpoint.url))
            else:
                replicas.worked(endpoint)
                return result


def client_of(source: str | Sequence[str] | Client, options: ClientOptions) -> Client:
    """The client that a dataset's `source` names. Raises TypeError for options beside a Client, which has its own."""
    if not isinstance(source, Client):
        return Client(source, **options)
    if options:
        raise TypeError(f"{', '.join(options)} given beside a Client; give it to the Client, or give the url in the Client's place")
    return source
