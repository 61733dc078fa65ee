"""The JSON bodies of the API: what the service writes, and what the client reads and checks.

Keys that a model does not know are ignored, so that a newer service may add some. Numbers are finite: JSON knows no others.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictInt, WithJsonSchema

Count = Annotated[int, Field(ge=0)]


class Body(BaseModel, frozen=True):
    """A JSON body. Raises ValidationError, a ValueError, when a member is missing or has another type or range."""

    # Built at first use: a trainer imports all of them, and needs one or two.
    model_config = ConfigDict(allow_inf_nan=False, defer_build=True)


# Splits


def _is_none(value: object) -> bool:
    return value is None


class CpsStats(Body, frozen=True):
    """CPS of a split, characters per second."""

    min: float
    max: float
    mean: float
    std: float = Field(description="Standard deviation, the population's.")


class Dropped(Body, frozen=True):
    """What alignment left out for one reason."""

    reason: str = Field(description="A code; among `leaks` the name of the other split.")
    count: Count = Field(description="How many rows.")
    examples: tuple[str, ...] = Field(default=(), description="The first few of them.")
    side: str = Field(default="", description="Which side's rows: `embedding` or `cps`.")


class RootDifference(Body, frozen=True):
    """Folders by which paths of the two sides differ, and only by them."""

    embeddings: str = Field(description="What the paths of the embeddings begin with; may be empty.")
    cps: str = Field(description="What those of the CPS rows begin with in its stead; may be empty.")
    count: Count = Field(description="How many rows of each side.")
    applied: bool = Field(description="Whether these rows are served: all paths of a side showed this difference, and no other.")
    options: tuple[str, ...] = Field(description="Options of the service that match these rows.")


class SpellingDifference(Body, frozen=True):
    """Rows that have no partner, and would have one but for the spelling of their paths."""

    differs_in: str = Field(description="`case`, `extension`, `blanks` or `percent-encoding`.")
    count: Count = Field(description="How many rows of each side.")
    remedy: str = Field(description="What matches them.")
    examples: tuple[str, ...] = Field(default=(), description="The first few of them, both sides.")


class AlignmentReport(Body, frozen=True):
    """How a split's embeddings and CPS rows were matched. Counts are of rows.

    num_embeddings = num_aligned + the counts in `dropped` whose side is "embedding"; likewise num_cps and "cps".
    num_aligned = num_exact + num_by_suffix + num_by_setting.
    """

    split: str
    num_embeddings: Count = Field(description="Rows of the source.")
    num_cps: Count = Field(description="Rows of the CPS table, without those of other splits.")
    num_aligned: Count = Field(description="Samples served.")
    num_exact: Count = Field(description="Matched by equal paths.")
    num_by_suffix: Count = Field(description="Matched by the ends of their paths, one folder standing before all of a side.")
    num_by_setting: Count = Field(default=0, description="Matched by `--map-root` or `--match`.")
    dropped: tuple[Dropped, ...] = Field(default=(), description="What was left out, one entry for each reason and side.")
    roots: tuple[RootDifference, ...] = Field(default=(), description="Folders by which paths differ, those of most rows first.")
    spellings: tuple[SpellingDifference, ...] = Field(default=(), description="What else paths without a partner differ in.")
    warnings: tuple[Dropped, ...] = Field(default=(), description="What is served, but looks wrong.")
    leaks: tuple[Dropped, ...] = Field(default=(), description="Paths that another split holds too: reported, never dropped.")

    @property
    def num_dropped(self) -> int:
        return sum(entry.count for entry in self.dropped)


class SplitInfo(Body, frozen=True):
    """One split as the service holds it."""

    split: str
    num_samples: Count
    embedding_dim: Count
    dtype: str
    fingerprint: str = Field(description="Content hash of rows, labels and paths.")
    cps: CpsStats
    source: str = Field(description="Where the embeddings come from.")
    cps_definition: str = Field(default="", description="What the rates are: a column, or how they were computed.")
    labels: tuple[str, ...] = Field(default=(), description="Further labels, each a float32 a sample, NaN where missing.")
    num_embeddings: Count = Field(description="Rows of the source.")
    num_cps: Count = Field(description="Rows of the CPS table.")
    num_dropped: Count = Field(description="Rows that alignment left out.")
    dropped: dict[str, Count] = Field(default_factory=dict, description="The same by reason.")
    max_path_bytes: Count | None = Field(default=None, exclude_if=_is_none, description="Length of the longest path, in UTF-8.")
    max_reply_bytes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, exclude_if=_is_none, description="Largest reply to one batches or take request; a larger one is refused."
    )
    workers: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Processes of the service, where there are several: it sends as many replies at once.",
    )


class SplitList(Body, frozen=True):
    """Body of GET /v1/splits."""

    fingerprint: str = Field(description="Of the whole dataset: a hash of those of its splits.")
    splits: tuple[SplitInfo, ...]


# Samples


class Sample(Body, frozen=True):
    """One sample in JSON; what was not asked for is None, and left out of the JSON."""

    index: Count | None = Field(default=None, exclude_if=_is_none, description="Position in the split.")
    file_path: str | None = Field(default=None, exclude_if=_is_none)
    cps: float | None = Field(default=None, exclude_if=_is_none, description="Characters per second.")
    embedding: tuple[float, ...] | None = Field(default=None, exclude_if=_is_none, description="D numbers.")
    labels: dict[str, float | None] | None = Field(
        default=None, exclude_if=_is_none, description="Further labels by name, null where the sample has none."
    )


class Rows(Body, frozen=True):
    """Body of GET /v1/splits/{split}/rows: the samples that match, in the order asked, from `offset` on."""

    split: str
    fingerprint: str
    offset: Count
    total: Count = Field(description="How many samples the split has.")
    matching: Count | None = Field(
        default=None, exclude_if=_is_none, description="How many of them match, where something was searched for."
    )
    rows: tuple[Sample, ...]


class JsonBatch(Body, frozen=True):
    """One batch in JSON."""

    step: Count = Field(
        description="Step of the epoch, counted from the query's start; of a body's batches, their number from 0 on."
    )
    samples: tuple[Sample, ...]


class JsonBatches(Body, frozen=True):
    """Body of the replies to batches and take as application/json: for people and small replies."""

    split: str
    fingerprint: str
    num_rows: Count = Field(description="Samples in all batches together.")
    batches: tuple[JsonBatch, ...]


# As strict as an index is: 1.0, true and "1" are none. Only the first that is wrong is told.
_Indices = Annotated[
    list[Annotated[StrictInt, WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**63 - 1})]], FailFast()
]


class TakeBody(Body, frozen=True):
    """The body of take, as people write it. A program sends raw little-endian int64 instead."""

    model_config = ConfigDict(extra="forbid")

    indices: _Indices = Field(
        description="Positions in the split, in the order in which the samples are wanted; repeats are allowed."
    )


class BatchesBody(Body, frozen=True):
    """The body of POST batches, as people write it. A program sends it raw, as index_batches.py has it."""

    model_config = ConfigDict(extra="forbid")

    batches: Annotated[list[_Indices], FailFast()] = Field(
        description="For each batch the positions in the split of its samples, in the order wanted; repeats are allowed."
    )


class RankSamples(Body, frozen=True):
    """What one rank gets at one step: index, file_path and cps of each sample."""

    rank: Count
    samples: tuple[Sample, ...]


class PlanStep(Body, frozen=True):
    """Body of GET /v1/splits/{split}/plan: the audit of one step."""

    split: str
    fingerprint: str
    step: Count
    num_steps: Count = Field(description="Steps of the epoch from its start on.")
    next_start: Count = Field(description="The `start` at which an epoch goes on after this step.")
    ranks: tuple[RankSamples, ...]


class Measurement(Body, frozen=True):
    """Body of GET /v1/splits/{split}/measure: how fast the service makes these batches when nobody has to take them."""

    split: str
    fingerprint: str
    seconds: float = Field(gt=0, description="How long it took, in all.")
    samples: Count
    batches: Count = Field(description="Record batches.")
    bytes: Count
    gather_seconds: float = Field(ge=0, description="Of it, gathering, reading from the disk included.")
    wait_seconds: float = Field(ge=0, description="Of it, waiting for turns, beside other requests.")
    send_seconds: float = Field(ge=0, description="Of it, sending to a socket of the service's own machine.")
    cpu_seconds: float = Field(ge=0, description="CPU that the worker took meanwhile, other requests included.")
    cpus: float = Field(ge=0, description="CPUs that the service may use at once: its affinity, or the quota of its cgroup.")
    throttled_seconds: float | None = Field(
        description="For so long a CPU quota has stopped the service's processes meanwhile; null where there is no quota."
    )
    other_streams: Count = Field(description="Open in this worker meanwhile.")
    allowed_bytes_per_second: Count | None = Field(
        default=None, description="What may be sent to this token, all its replies together; null where there is no limit."
    )
    in_memory: bool = Field(description="Whether all data of this version fits in the memory that the service may use.")


# Health


class Index(Body, frozen=True):
    """Body of GET /: where everything is."""

    service: str
    splits: str
    documentation: str
    openapi: str
    ready: str
    metrics: str
    client: str


class ClientInfo(Body, frozen=True):
    """Body of GET /client. The last three are null where the service was installed without a wheel of its client."""

    contract: int
    version: str | None
    wheel: str | None
    sha256: str | None


class Alive(Body, frozen=True):
    """Body of GET /livez."""

    status: str


class Status(Body, frozen=True):
    """Body of GET /readyz for whoever has no token where some are set."""

    status: str


class Ready(Body, frozen=True):
    """Body of GET /readyz."""

    status: str
    fingerprint: str = Field(description="Of the whole dataset.")
    stale_reason: str | None = Field(default=None, description="Why the data may be older than its source; null where it is not.")
    reload_error: str | None = Field(default=None, description="Why the last reload failed; null where it did not.")
    splits: tuple[str, ...]


# Errors


class Problem(BaseModel, frozen=True):
    """RFC 9457 problem details. Further members may stand beside these."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    type: str = Field(description="Where the code is explained, relative to the service.")
    title: str = Field(description="The kind of error, in a few words; constant for the code.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong with this request, and the remedy. For people: do not parse.")
    instance: str = Field(description="The path asked for.")
    code: str = Field(description="For programs: choose by this.")
    request_id: str = Field(description="The X-Request-ID, under which the service's log has the request.")

    @property
    def extra(self) -> dict[str, Any]:
        """The further members, such as the expected and actual fingerprints."""
        return self.model_extra or {}


class Explanation(Body, frozen=True):
    """Body of GET /problems/{code}: what a code means."""

    type: str
    code: str
    status: int
    title: str
    meaning: str
