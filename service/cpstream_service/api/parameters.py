"""Query parameters as pydantic models: FastAPI reads, validates and documents them, the routes get wire queries.

What a model does not declare is refused, with the nearest name that it does: an ignored `bacth_size` would train on wrong batches.
Ranges that depend on the split (start, rank below world_size, ...) are checked by the plan itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.datastructures import QueryParams

from cpstream_client.contract.plan import Remainder, Shuffle
from cpstream_client.contract.wire import COLUMNS, DEFAULT_COLUMNS, BatchQuery, Column, Dtype

from ..errors import InvalidParameter, shown
from ..statistics.selection import Wanted

MAX_NAMED = 8
"""Mistakes of one request that its problem names."""
MAX_NEIGHBOURS = 1000
MAX_SEARCH = 1024
MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


LowerCase = BeforeValidator(_lower)
"""So that Python's str(True) is understood."""

_SHUFFLES: dict[str, Shuffle] = {"true": "uniform", "false": "none", "uniform": "uniform", "none": "none", "blocks": "blocks"}
_WIRE_FIELDS = {spec.name for spec in fields(BatchQuery)}


class Parameters(BaseModel):
    """No query parameters, and the refusal of all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            names = [spec.alias or name for name, spec in cls.model_fields.items()]
            detail = explained(error.errors(include_url=False), names)
        raise InvalidParameter(detail)


class PinnedParameters(Parameters):
    fingerprint: Annotated[
        Annotated[str, Field(min_length=1, json_schema_extra={"pattern": "^[0-9a-f]{32}$"})] | None,
        Field(
            description="Fingerprint of the split (as `GET /v1/splits/{split}` has it) that the reply must come from. When other "
            "data is served, the reply is 409 `dataset-changed`.",
        ),
    ] = None


def _names(columns: str) -> list[str]:
    return [name.strip(" ") for name in columns.split(",")]


def _check_columns(columns: str) -> str:
    for name in _names(columns):
        if name not in COLUMNS and not name.isidentifier():  # whether it is a label, the split knows
            raise PydanticCustomError(
                "no_column", "{name} is no column; columns: {columns}", {"name": shown(name), "columns": ", ".join(COLUMNS)}
            )
    return columns


class SampleParameters(PinnedParameters):
    """In which form samples are sent."""

    dtype: Annotated[
        Dtype, LowerCase, Field(description="Type of the embeddings sent. `float16` halves the bytes, rounding to nearest even.")
    ] = "float32"
    columns: Annotated[
        str,
        AfterValidator(_check_columns),
        Field(
            description="Columns sent, comma-separated: any of `embedding`, `cps`, `index`, the split's further `labels`, "
            "`file_path`; they come in this order.",
            examples=["embedding,cps,index,file_path"],
        ),
    ] = ",".join(DEFAULT_COLUMNS)

    @cached_property
    def parsed_columns(self) -> tuple[Column, ...]:
        """In the wire's order."""
        return BatchQuery(columns=tuple(_names(self.columns))).columns


class EpochParameters(PinnedParameters):
    """Which order an epoch has and how it is cut into batches."""

    batch_size: Annotated[int, Field(ge=1, le=MAX_INT32, description="Samples in a batch of one rank.")] = 256
    shuffle: Annotated[
        Literal["false", "true", "none", "uniform", "blocks"],
        LowerCase,
        AfterValidator(_SHUFFLES.__getitem__),
        Field(
            description="Order of the epoch. `none` (or `false`): by index. `uniform` (or `true`): the permutation that torch's "
            "`DistributedSampler(seed=seed)` has after `set_epoch(epoch)`, bit for bit. `blocks`: blocks of rows permuted, and "
            "rows within windows of blocks, for splits larger than memory."
        ),
    ] = "none"
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_INT64, description="Seed of the permutation.")] = 0
    epoch: Annotated[
        int, Field(ge=0, le=MAX_INT64, description="Epoch: the permutation is that of `seed + epoch`, as in DistributedSampler.")
    ] = 0
    world_size: Annotated[int, Field(ge=1, le=MAX_INT32, description="Number of ranks that share the epoch.")] = 1
    remainder: Annotated[
        Remainder,
        LowerCase,
        Field(
            description="What happens when `world_size` does not divide the samples. `pad`: short ranks repeat samples from the "
            "head of the order (DistributedSampler's default). `drop`: the surplus is left out (its `drop_last=True`). `exact`: "
            "each sample once, all ranks make the same number of steps, and a short rank's last batch is smaller or empty."
        ),
    ] = "pad"
    drop_last: Annotated[
        bool, LowerCase, Field(description="Leave out the last batch of the epoch when it has fewer than `batch_size` samples.")
    ] = False
    start: Annotated[
        int,
        Field(ge=0, le=MAX_INT64, description="Samples of the epoch that all ranks together have consumed: the resume position."),
    ] = 0

    def query(self) -> BatchQuery:
        """The wire query; of rank 0 where there is no rank."""
        return BatchQuery(**self._wire_fields())

    def _wire_fields(self) -> dict[str, Any]:
        return {name: value for name, value in self if name in _WIRE_FIELDS}


class BatchParameters(EpochParameters, SampleParameters):
    rank: Annotated[int, Field(ge=0, le=MAX_INT32, description="The rank asking, from 0 to `world_size` - 1.")] = 0
    limit: Annotated[
        int | None, Field(ge=1, le=MAX_INT64, description="At most this many batches; by default all to the end of the epoch.")
    ] = None
    worker: Annotated[
        int, Field(ge=0, le=MAX_INT32, description="Of the rank's batches only every `num_workers`-th, beginning with this one.")
    ] = 0
    num_workers: Annotated[
        int, Field(ge=1, le=MAX_INT32, description="Number of DataLoader workers that share the rank's batches.")
    ] = 1

    def query(self) -> BatchQuery:
        return BatchQuery(**self._wire_fields() | {"columns": self.parsed_columns})


class PlanParameters(EpochParameters):
    step: Annotated[int, Field(ge=0, le=MAX_INT64, description="Step of the epoch, counted from `start`.")] = 0


Rate = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class RowsParameters(PinnedParameters):
    offset: Annotated[int, Field(ge=0, le=MAX_INT64, description="Position of the first row among those that match.")] = 0
    length: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_INT64,
            description="Number of rows: 100 by default, at most the service's `max_json_rows` (usually 1024). As CSV: any number, "
            "all by default.",
        ),
    ] = None
    embedding: Annotated[bool, LowerCase, Field(description="Whether to send the embeddings too; not as CSV.")] = False
    search: Annotated[
        str | None, Field(min_length=1, max_length=MAX_SEARCH, description="Part of the path, in upper or lower case.")
    ] = None
    min_cps: Annotated[Rate, Field(description="Lowest rate, inclusive.")] = None
    max_cps: Annotated[Rate, Field(description="Highest rate, inclusive.")] = None
    sort: Annotated[
        str,
        Field(
            description="By what: `index`, `file_path`, `cps` or a further label. Of equal ones the lower index comes first, and "
            "what has no label last."
        ),
    ] = "index"
    descending: Annotated[bool, LowerCase, Field(description="Whether the largest comes first.")] = False

    @property
    def wanted(self) -> Wanted:
        """Raises InvalidParameter where nothing can match."""
        if self.min_cps is not None and self.max_cps is not None and self.min_cps > self.max_cps:
            raise InvalidParameter(f"min_cps is {self.min_cps:g}, above max_cps, {self.max_cps:g}; swap them")
        return Wanted(self.search, self.min_cps, self.max_cps, self.sort, self.descending)


class DifferenceParameters(Parameters):
    from_: Annotated[
        str, Field(alias="from", min_length=1, description="Fingerprint of the version that the comparison begins with.")
    ]
    to: Annotated[
        Annotated[str, Field(min_length=1)] | None, Field(description="That of the other one; by default the current version's.")
    ] = None


class NeighboursParameters(PinnedParameters):
    index: Annotated[int | None, Field(ge=0, le=MAX_INT64, description="Of the sample whose neighbours are wanted; or else:")] = (
        None
    )
    file_path: Annotated[str | None, Field(min_length=1, description="Its path, as the split has it.")] = None
    k: Annotated[int, Field(ge=1, le=MAX_NEIGHBOURS, description="How many neighbours.")] = 10


def check_repeats(query: QueryParams) -> None:
    """Raises InvalidParameter when a parameter is given more than once: FastAPI would take the last."""
    given = Counter(name for name, _ in query.multi_items())
    for name, count in given.items():
        if count > 1:
            values = ", ".join(shown(value) for value in query.getlist(name)[:3])
            raise InvalidParameter(f"parameter {shown(name)} is given {count} times ({values}); give it once")


def explained(errors: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> str:
    """The entries of a pydantic validation error, for people. known: the parameters that there are."""
    sentences = [_sentence(entry, known) for entry in errors[:MAX_NAMED]]
    return "; ".join(sentences + [f"and {len(errors) - MAX_NAMED} more"] * (len(errors) > MAX_NAMED))


def _sentence(entry: Mapping[str, Any], known: Sequence[str]) -> str:
    name, context = str(entry["loc"][-1]), entry.get("ctx", {})
    if entry["type"] == "missing":
        return f"{name} is missing; give it: parameters: {', '.join(known)}"
    if entry["type"] == "extra_forbidden":
        return f"parameter {shown(name)} is not known here; {_suggestion(name, known)}"
    expected = {
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number of 64 bits",
        "int_from_float": "a whole number",
        "bool_parsing": "true or false",
        "greater_than_equal": f"{context.get('ge')} or more",
        "less_than_equal": f"{context.get('le')} or less",
        "literal_error": f"one of {str(context.get('expected')).replace(' or ', ', ')}",
        "string_too_short": f"at least {context.get('min_length')} character long",
        "string_too_long": f"at most {context.get('max_length')} characters long",
        "float_parsing": "a number",
        "finite_number": "a finite number",
    }.get(entry["type"])
    return f"{name} is {shown(entry['input'])}" + (f": {entry['msg']}" if expected is None else f"; it must be {expected}")


def _suggestion(name: str, known: Sequence[str]) -> str:
    if not known:
        return "this resource has no parameters"
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"parameters: {', '.join(known)}"


@lru_cache(maxsize=256)
def sample_parameters(query: bytes) -> SampleParameters:
    """Those of a query string. Remembered: random access asks the same again and again."""
    given = QueryParams(query)
    check_repeats(given)
    return SampleParameters.model_validate(dict(given))
