"""Query parameters as dataclasses: FastAPI reads, validates and documents them, the routes get wire queries.

What a class does not declare is refused, with the nearest name that it does: an ignored `bacth_size` would train on wrong batches.
Ranges that depend on the split (start, rank below world_size, ...) are checked by the plan itself.
"""

from collections import Counter
from dataclasses import dataclass, fields
from difflib import get_close_matches
from inspect import signature
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from pydantic import BeforeValidator

from cpstream_client.contract.plan import Remainder, Shuffle
from cpstream_client.contract.wire import COLUMNS, DEFAULT_COLUMNS, BatchQuery, Column, Dtype

from ..errors import InvalidParameter, shown

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LowerCase = BeforeValidator(_lower)
"""So that Python's str(True) is understood."""

_SHUFFLES: dict[str, Shuffle] = {"true": "uniform", "false": "none", "uniform": "uniform", "none": "none", "blocks": "blocks"}


@dataclass(kw_only=True)
class Parameters:
    """No query parameters, and the refusal of all others."""

    request: Request

    def __post_init__(self) -> None:
        known = [spec.name for spec in fields(self) if spec.name != "request"]
        given = Counter(name for name, _ in self.request.query_params.multi_items())
        for name, count in given.items():
            if name not in known:
                raise InvalidParameter(f"parameter {shown(name)} is not known here; {_suggestion(name, known)}")
            if count > 1:
                values = ", ".join(shown(value) for value in self.request.query_params.getlist(name)[:3])
                raise InvalidParameter(f"parameter {name!r} is given {count} times ({values}); give it once")


def given(kind: type[Parameters]) -> Any:
    """The dependency on such parameters. A coroutine: FastAPI calls classes in a thread, which takes longer than the rest."""

    async def make(**values: Any) -> Parameters:
        return kind(**values)

    make.__signature__ = signature(kind)  # type: ignore[attr-defined]
    return Depends(make)


def _suggestion(name: str, known: list[str]) -> str:
    if not known:
        return "this resource has no parameters"
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"parameters: {', '.join(known)}"


@dataclass(kw_only=True)
class PinnedParameters(Parameters):
    fingerprint: Annotated[
        str | None,
        Query(
            min_length=1,
            description="Fingerprint of the split (as `GET /v1/splits/{split}` has it) that the reply must come from. When other "
            "data is served, the reply is 409 `dataset-changed`.",
        ),
    ] = None


def parse_columns(text: str) -> tuple[Column, ...]:
    """The columns of a comma-separated list, in the wire's order. Raises InvalidParameter."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in COLUMNS:
            raise InvalidParameter(f"columns is {shown(text)}, and {shown(name)} is no column; columns: {', '.join(COLUMNS)}")
    return tuple(column for column in COLUMNS if column in names)


@dataclass(kw_only=True)
class SampleParameters(PinnedParameters):
    """In which form samples are sent."""

    dtype: Annotated[
        Dtype, LowerCase, Query(description="Type of the embeddings sent. `float16` halves the bytes, rounding to nearest even.")
    ] = "float32"
    columns: Annotated[
        str,
        Query(
            description="Columns sent, comma-separated: any of `embedding`, `cps`, `index`, `file_path`; they come in this order.",
            examples=["embedding,cps,index,file_path"],
        ),
    ] = ",".join(DEFAULT_COLUMNS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parsed_columns = parse_columns(self.columns)

    @property
    def canonical(self) -> dict[str, str]:
        """What shapes the reply, in one spelling: the material of an ETag."""
        return BatchQuery(dtype=self.dtype, columns=self.parsed_columns).to_params()


@dataclass(kw_only=True)
class EpochParameters(PinnedParameters):
    """Which order an epoch has and how it is cut into batches."""

    batch_size: Annotated[int, Query(ge=1, le=MAX_INT32, description="Samples in a batch of one rank.")] = 256
    shuffle: Annotated[
        Literal["false", "true", "none", "uniform", "blocks"],
        LowerCase,
        Query(
            description="Order of the epoch. `none` (or `false`): by index. `uniform` (or `true`): the permutation that torch's "
            "`DistributedSampler(seed=seed)` has after `set_epoch(epoch)`, bit for bit. `blocks`: blocks of rows permuted, and "
            "rows within windows of blocks, for splits larger than memory."
        ),
    ] = "none"
    seed: Annotated[int, Query(ge=-(2**63), le=MAX_INT64, description="Seed of the permutation.")] = 0
    epoch: Annotated[
        int, Query(ge=0, le=MAX_INT64, description="Epoch: the permutation is that of `seed + epoch`, as in DistributedSampler.")
    ] = 0
    world_size: Annotated[int, Query(ge=1, le=MAX_INT32, description="Number of ranks that share the epoch.")] = 1
    remainder: Annotated[
        Remainder,
        LowerCase,
        Query(
            description="What happens when `world_size` does not divide the samples. `pad`: short ranks repeat samples from the "
            "head of the order (DistributedSampler's default). `drop`: the surplus is left out (its `drop_last=True`). `exact`: "
            "each sample once, all ranks make the same number of steps, and a short rank's last batch is smaller or empty."
        ),
    ] = "pad"
    drop_last: Annotated[
        bool, LowerCase, Query(description="Leave out the last batch of the epoch when it has fewer than `batch_size` samples.")
    ] = False
    start: Annotated[
        int,
        Query(ge=0, le=MAX_INT64, description="Samples of the epoch that all ranks together have consumed: the resume position."),
    ] = 0

    def epoch_query(self) -> BatchQuery:
        """The wire query of rank 0."""
        return self._query()

    def _query(self, **more: Any) -> BatchQuery:
        return BatchQuery(
            batch_size=self.batch_size,
            shuffle=_SHUFFLES[self.shuffle],
            seed=self.seed,
            epoch=self.epoch,
            world_size=self.world_size,
            remainder=self.remainder,
            drop_last=self.drop_last,
            start=self.start,
            fingerprint=self.fingerprint,
            **more,
        )


@dataclass(kw_only=True)
class BatchParameters(EpochParameters, SampleParameters):
    rank: Annotated[int, Query(ge=0, le=MAX_INT32, description="The rank asking, from 0 to `world_size` - 1.")] = 0
    limit: Annotated[
        int | None, Query(ge=1, le=MAX_INT64, description="At most this many batches; by default all to the end of the epoch.")
    ] = None
    worker: Annotated[
        int, Query(ge=0, le=MAX_INT32, description="Of the rank's batches only every `num_workers`-th, beginning with this one.")
    ] = 0
    num_workers: Annotated[
        int, Query(ge=1, le=MAX_INT32, description="Number of DataLoader workers that share the rank's batches.")
    ] = 1

    def query(self) -> BatchQuery:
        return self._query(
            rank=self.rank,
            limit=self.limit,
            worker=self.worker,
            num_workers=self.num_workers,
            dtype=self.dtype,
            columns=self.parsed_columns,
        )


@dataclass(kw_only=True)
class PlanParameters(EpochParameters):
    step: Annotated[int, Query(ge=0, le=MAX_INT64, description="Step of the epoch, counted from `start`.")] = 0


@dataclass(kw_only=True)
class RowsParameters(PinnedParameters):
    offset: Annotated[int, Query(ge=0, le=MAX_INT64, description="Index of the first row.")] = 0
    length: Annotated[
        int | None,
        Query(
            ge=1, le=MAX_INT64, description="Number of rows: 100 by default, at most the service's `max_json_rows` (usually 1024)."
        ),
    ] = None
    embedding: Annotated[bool, LowerCase, Query(description="Whether to send the embeddings too.")] = False
