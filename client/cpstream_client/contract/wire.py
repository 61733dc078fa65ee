"""The contract between service and client: paths, media types, queries, the Arrow schema, error codes. JSON is in bodies.py.

Everything that crosses the wire is named in these two and nowhere else; both packages import them.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from hashlib import sha256
from typing import Literal, get_args
from urllib.parse import quote

import pyarrow as pa

from .plan import Plan, Remainder, Shuffle

API_PREFIX = "/v1"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
ARROW_FILE = "application/vnd.apache.arrow.file"
JSON = "application/json"
CSV = "text/csv"
PROBLEM_JSON = "application/problem+json"
OCTET_STREAM = "application/octet-stream"
PARQUET = "application/vnd.apache.parquet"
INDEX, FILE_PATH, PREDICTED = "index", "file_path", "predicted"
"""Columns of a table of predictions: PREDICTED, and one of the two others."""
REQUEST_ID_HEADER = "X-Request-ID"
DIGEST_HEADER = "Content-Digest"
"""On every JSON reply: RFC 9530's digest of its body. Arrow streams have a checksum in each batch instead."""
LOCATION_HEADER = "Content-Location"
"""On every successful JSON reply: the path and query that it answers, so that a client sees that it was understood."""

CONTRACT = 1
"""Which form of requests and replies this is: versions of the package that have the same number fit each other. It is raised when a
client of before would misread a reply, or not be understood."""
CONTRACT_HEADER = "X-Cpstream"
"""On every reply: `contract=1`, and where the service hands out the client that fits, `contract=1, client="cpstream-...whl"`."""
CLIENT_PATH = "/client"
"""Below it, the service hands out the client."""

Dtype = Literal["float32", "float16"]
Column = str
"""One of COLUMNS, or the name of a further label that the split has."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
COLUMNS: tuple[Column, ...] = ("embedding", "cps", "index", "file_path")
"""That every split has."""
DEFAULT_COLUMNS: tuple[Column, ...] = ("embedding", "cps", "index")

CHECKSUM_BYTES = 8
"""Every record batch's body ends with 8 bytes that no Arrow buffer covers, and that other readers pass over: the CRC-32C, little
endian, of all of the message before them, prefix and header included. Arrow itself has no checksum."""


def columns_of(labels: Iterable[str]) -> tuple[Column, ...]:
    """All columns of a split with these further labels, in the wire's order: file_path, whose length varies, is the last."""
    return (*COLUMNS[:-1], *sorted(labels), COLUMNS[-1])


def is_misspelt(name: str) -> bool:
    """Whether a name is so like one of COLUMNS that it must be meant for it: no further label is called so."""
    return name not in COLUMNS and bool(get_close_matches(name.lower(), COLUMNS, 1, 0.9))


def content_digest(body: bytes) -> str:
    """Value of the header Content-Digest, by SHA-256."""
    return f"sha-256=:{b64encode(sha256(body).digest()).decode()}:"


def split_path(split: str, *rest: str) -> str:
    """Path of a split's resource, quoted: split_path("train", "batches") == "/v1/splits/train/batches"."""
    return "/".join([f"{API_PREFIX}/splits", *(quote(part, safe="") for part in (split, *rest))])


def contract_header(wheel: str | None) -> str:
    """Value of the header by which a service says what it speaks. wheel: name of the file that it hands out, if it does."""
    return f"contract={CONTRACT}" + (f', client="{wheel}"' if wheel else "")


def misfit(header: str, url: str) -> str | None:
    """Why a service that sends this header and the client of here do not fit, with the remedy; None where they do.

    url: of the service. A service that sends no such header is of before there was one, with contract 1.
    """
    found = _CONTRACT.fullmatch(header.strip() or "contract=1")
    if found is None or int(found["contract"]) == CONTRACT:
        return None
    wheel = found["wheel"]
    remedy = (
        f"python -m pip install 'cpstream @ {url}{CLIENT_PATH}/{quote(wheel)}'"
        if wheel
        else "have both of the same release: python -m pip install --upgrade cpstream"
    )
    return f"{url} speaks contract {found['contract']} and this client contract {CONTRACT}: {remedy}"


_CONTRACT = re.compile(r'contract=(?P<contract>\d{1,9})(?:, client="(?P<wheel>[\w.+-]+\.whl)")?(?:,.*)?')

# Queries


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchQuery:
    """The parameters of GET /v1/splits/{split}/batches. Together with the fingerprint they fix every byte of the reply.

    `worker` of `num_workers` selects every num_workers-th batch of the rank's, as DataLoader workers share them. columns: which,
    in whatever order; on the wire they come in the order of columns_of.
    """

    batch_size: int = 256
    shuffle: Shuffle = "none"
    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world_size: int = 1
    remainder: Remainder = "pad"
    drop_last: bool = False
    start: int = 0
    limit: int | None = None
    worker: int = 0
    num_workers: int = 1
    dtype: Dtype = "float32"
    columns: tuple[Column, ...] = DEFAULT_COLUMNS
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        known = columns_of(set(self.columns).difference(COLUMNS)) if not set(self.columns).issubset(COLUMNS) else COLUMNS
        object.__setattr__(self, "columns", tuple(name for name in known if name in self.columns))

    def check_columns(self, labels: Iterable[str] = ()) -> None:
        """Raises ValueError for a column that a split with these further labels does not have, and where none is asked for."""
        held = columns_of(labels)
        wrong = [name for name in self.columns if name not in held]
        if wrong or not self.columns:
            said = f"columns has {wrong[0]!r}" if wrong else "columns is empty"
            raise ValueError(f"{said}; it must name some of {', '.join(held)}")

    def plan(self, n: int) -> Plan:
        """The plan over a split of n samples. Raises ValueError when a parameter is out of range."""
        return Plan(
            n=n,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=self.epoch,
            start=self.start,
            rank=self.rank,
            world_size=self.world_size,
            remainder=self.remainder,
            drop_last=self.drop_last,
        )

    def steps(self, n: int) -> range:
        """The steps of the plan whose batches the reply holds, in order. Raises ValueError when out of range."""
        if self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; it must be 1 or more")
        if not 0 <= self.worker < self.num_workers:
            raise ValueError(f"worker is {self.worker}; it must be from 0 to {self.num_workers - 1} (num_workers - 1)")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be 1 or more")
        return range(self.worker, self.plan(n).num_steps, self.num_workers)[: self.limit]

    def num_rows(self, n: int) -> int:
        """Samples of these steps together. Raises ValueError when a parameter is out of range."""
        steps = self.steps(n)
        if not steps:
            return 0
        low, high = self.plan(n).step_bounds(steps[-1])  # only the last batch can be short
        return (len(steps) - 1) * self.batch_size + high - low

    def to_params(self) -> dict[str, str]:
        """As URL parameters; what equals its default is left out, so that equal queries give equal URLs."""
        params = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value == spec.default or value is None:
                continue
            if isinstance(value, tuple):
                value = ",".join(value)
            params[spec.name] = str(value).lower() if isinstance(value, bool) else str(value)
        return params


# Errors


class ErrorCode(Enum):
    """Every error that the service answers: code, HTTP status, title. The client maps by code, never by message."""

    UNKNOWN_SPLIT = ("unknown-split", 404, "No such split")
    NOT_FOUND = ("not-found", 404, "No such resource")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "Method not allowed here")
    INVALID_PARAMETER = ("invalid-parameter", 422, "A parameter is invalid")
    INDEX_OUT_OF_RANGE = ("index-out-of-range", 422, "An index is outside the split")
    RANGE_NOT_SATISFIABLE = ("range-not-satisfiable", 416, "The byte range is outside the file")
    DATASET_CHANGED = ("dataset-changed", 409, "The data served is not the data asked for")
    FORGOTTEN = ("forgotten", 410, "The data asked for holds a recording that was forgotten")
    UNAUTHORIZED = ("unauthorized", 401, "A valid token is needed")
    FORBIDDEN = ("forbidden", 403, "Not allowed to whoever asks")
    NOT_ACCEPTABLE = ("not-acceptable", 406, "No such representation")
    PAYLOAD_TOO_LARGE = ("payload-too-large", 413, "The request or its reply is too large")
    BODY_TIMEOUT = ("body-timeout", 408, "The request's body did not arrive in time")
    TOO_MANY_STREAMS = ("too-many-streams", 429, "One client has too many streams")
    TOO_MANY_BYTES = ("too-many-bytes", 429, "A token is being sent as much as it may")
    OVERLOADED = ("overloaded", 503, "Too many requests at once")
    STORAGE_FAILED = ("storage-failed", 503, "The service cannot write what the reply needs")
    STATISTICS_FAILED = ("statistics-failed", 500, "The statistics cannot be computed")
    STATE_FULL = ("state-full", 507, "No more can be kept here")
    NOT_READY = ("not-ready", 503, "The data is still being loaded")
    RELOADING = ("reloading", 503, "The data is being replaced")
    NOT_CONFIGURED = ("not-configured", 501, "The service is not set up for this")
    DRAINING = ("draining", 503, "The service is shutting down")
    INTERNAL = ("internal", 500, "An error inside the service")

    def __init__(self, code: str, status: int, title: str) -> None:
        self.code, self.status, self.title = code, status, title


# Arrow


def batch_schema(dim: int, dtype: Dtype, columns: tuple[Column, ...], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Schema of a batch: nothing nullable; embedding is fixed_size_list<dtype>[dim], a further label float32."""
    value_type = pa.float32() if dtype == "float32" else pa.float16()
    types = {
        "embedding": pa.list_(pa.field("item", value_type, nullable=False), dim),
        "cps": pa.float32(),
        "index": pa.int64(),
        "file_path": pa.string(),
    }
    return pa.schema([pa.field(name, types.get(name, pa.float32()), nullable=False) for name in columns], metadata=metadata)


def stream_metadata(split: str, fingerprint: str, query: BatchQuery, num_rows: int, num_batches: int) -> dict[str, str]:
    """Schema metadata of a batch stream. `query` echoes the request, so that a client sees that it was understood."""
    return {
        "split": split,
        "fingerprint": fingerprint,
        "seed": str(query.seed),
        "epoch": str(query.epoch),
        "start": str(query.start),
        "num_rows": str(num_rows),
        "num_batches": str(num_batches),
        "query": json.dumps(query.to_params(), sort_keys=True),
    }
