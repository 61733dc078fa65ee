"""The JSON bodies of predictions that came back: how far a run of a model is from the rates."""

from pydantic import Field

from .bodies import Body, Count
from .figures import Decile, Errors


class Unmatched(Body, frozen=True):
    """Rows, or samples, that count for nothing."""

    count: Count
    examples: tuple[str, ...] = Field(default=(), description="The first few: paths, or indices.")


class Run(Body, frozen=True):
    """What somebody predicted of a split. The errors are of the samples that have a prediction."""

    name: str
    published_at: str = Field(description="When it came, UTC.")
    num_samples: Count = Field(description="Of the split.")
    num_predicted: Count = Field(description="Samples of the split that have a prediction.")
    missing: Unmatched = Field(description="Samples of the split without one.")
    unknown: Unmatched = Field(description="Rows that name no sample of the split.")
    conflicting: Unmatched = Field(description="Samples with several different predictions; none of them counts.")
    not_finite: Unmatched = Field(description="Rows whose prediction is no finite number.")
    errors: Errors
    bias: float = Field(description="Mean of prediction less rate.")


class RunList(Body, frozen=True):
    """Body of GET /v1/splits/{split}/predictions: by mean absolute error, the least first."""

    split: str
    fingerprint: str
    runs: tuple[Run, ...]


class Folder(Body, frozen=True):
    """The errors of the recordings of a folder, which often is a speaker."""

    folder: str
    count: Count
    mae: float
    bias: float


class Missed(Body, frozen=True):
    """A recording and what was predicted of it."""

    index: Count
    file_path: str
    cps: float
    predicted: float


class RunReport(Run, frozen=True):
    """Body of GET and PUT /v1/splits/{split}/predictions/{name}."""

    split: str
    fingerprint: str
    deciles: tuple[Decile, ...] = Field(description="By the rates of the samples that have a prediction.")
    num_folders: Count
    folders: tuple[Folder, ...] = Field(description="Those with the largest mean absolute error, the worst first.")
    worst: tuple[Missed, ...] = Field(description="The recordings that were missed by most, the worst first.")


class RunPoints(Body, frozen=True):
    """Body of GET /v1/splits/{split}/predictions/{name}/points: samples to draw, evenly spread over those with a prediction."""

    split: str
    fingerprint: str
    name: str
    index: tuple[Count, ...]
    cps: tuple[float, ...]
    predicted: tuple[float, ...]
