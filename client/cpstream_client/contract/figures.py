"""The JSON bodies of what a split looks like in figures: statistics, projection, neighbours.

A figure that cannot be had (of one sample, of constant values) is null, and `notes` says why.
"""

from pydantic import Field

from .bodies import Body, Count, Sample

# Distributions


class Histogram(Body, frozen=True):
    """Counts between edges; a value at an edge counts above it, at the last edge below."""

    rule: str = Field(
        description="By which the bins are chosen: `freedman-diaconis`, `sturges`, or `equal-200` where either has more."
    )
    edges: tuple[float, ...] = Field(description="One more than there are counts.")
    counts: tuple[Count, ...]


class Distribution(Body, frozen=True):
    """How the values of one number a sample are distributed."""

    count: Count
    mean: float
    std: float = Field(description="Standard deviation, the population's.")
    min: float
    quartiles: tuple[float, float, float] = Field(description="25, 50 and 75 %, interpolated.")
    max: float
    histogram: Histogram


class RateFigures(Distribution, frozen=True):
    """CPS of a split, characters per second."""

    num_unusual: Count = Field(description="Samples outside the usual rates, 1 to 60 characters a second.")
    unusual_share: float


# Embeddings


class Found(Body, frozen=True):
    """Samples of which something is said."""

    count: Count
    examples: tuple[str, ...] = Field(default=(), description="Paths of the first few.")


class Pair(Body, frozen=True):
    """Two samples."""

    file_path: str
    other: str = Field(description="Path of the other one.")
    cosine: float | None = Field(default=None, description="Of both, less the mean of all splits; null where they are equal.")


class FoundPairs(Body, frozen=True):
    """Samples that have a like."""

    count: Count = Field(description="Samples of this split that have one; of equal ones within it, all but the first.")
    examples: tuple[Pair, ...] = Field(default=(), description="The first few.")


class Dimensions(Body, frozen=True):
    """Dimensions of the embedding of which something is said."""

    count: Count
    examples: tuple[Count, ...] = Field(default=(), description="The first few, from 0 on.")


class VectorFigures(Body, frozen=True):
    """The embeddings of a split."""

    dimension: Count
    norms: Distribution = Field(description="Euclidean.")
    num_zero: Count = Field(description="All-zero embeddings.")
    zero_examples: tuple[str, ...] = Field(description="Paths of the first few.")
    constant: Dimensions = Field(description="Dimensions that are the same in all samples.")
    near_constant: Dimensions = Field(
        description="Others whose standard deviation is below a thousandth of that of the median dimension."
    )
    duplicates: FoundPairs = Field(description="Samples whose embedding equals that of an earlier one.")
    mean_cosine: float | None = Field(description="Over all pairs of different samples, all-zero ones left out.")
    effective_rank: float | None = Field(description="Roy and Vetterli's, of the centred embeddings: from 1 to the dimension.")
    participation_ratio: float | None = Field(description="(sum of the variances of all components)^2 / sum of their squares.")


# Between splits


class Shared(Body, frozen=True):
    """What this split shares with another one."""

    split: str = Field(description="The other.")
    same_file: Found = Field(description="Paths that both hold: `leaks` of the alignment.")
    same_vector: FoundPairs = Field(description="Samples whose embedding another of the other split equals.")
    near_duplicates: FoundPairs | None = Field(
        description="Samples of which one of the other split has a cosine of 0.999 or more, less the mean of all splits; equal "
        "ones among them. Candidates are found by random hyperplanes: 10 bands of 24 bits. Null where they were not looked for."
    )


class Shift(Body, frozen=True):
    """How this split differs from another one."""

    split: str = Field(description="The other.")
    cps_difference: float = Field(description="Mean CPS of this one less the other's, characters a second.")
    cps_effect: float | None = Field(description="The same in units of the standard deviation (both variances averaged).")
    cps_ks: float = Field(description="Kolmogorov and Smirnov's statistic of both: from 0 (alike) to 1.")
    embedding_distance: float | None = Field(description="Of both mean embeddings, Euclidean; null where their dimensions differ.")
    embedding_effect: float | None = Field(
        description="The same in units of the spread: the root of both total variances averaged."
    )
    embedding_by_chance: float | None = Field(description="What splits drawn from one distribution would show, in the same units.")


# Baseline


class Errors(Body, frozen=True):
    """How far predictions are from the rates."""

    r2: float | None
    mae: float = Field(description="Mean absolute error, characters a second.")


class Decile(Body, frozen=True):
    """The errors of samples with about the same rate."""

    low: float = Field(description="Lowest rate; the samples from here up to `high`, which the last decile includes.")
    high: float
    count: Count
    mae: float
    bias: float = Field(description="Mean of prediction less rate.")


class AlphaTried(Body, frozen=True):
    """One strength of the penalty, and what it gave on the development split."""

    alpha: float
    mae: float
    rmse: float


class Baseline(Body, frozen=True):
    """A ridge regression of CPS on the embedding, as scikit-learn's Ridge(alpha) has it, and what it predicts of this split."""

    fitted_on: str = Field(description="The training split.")
    chosen_on: str = Field(description="The development split: of all `alphas` that with the least squared error there is used.")
    alpha: float
    alphas: tuple[AlphaTried, ...]
    ridge: Errors
    mean: Errors = Field(description="Of predicting the training split's mean for every sample.")
    deciles: tuple[Decile, ...] = Field(
        description="Of the ridge regression, by the rates of this split; fewer where rates are equal."
    )


class Roles(Body, frozen=True):
    """Which split is which; null where none, or more than one, has such a name."""

    train: str | None
    dev: str | None
    test: str | None


class Statistics(Body, frozen=True):
    """Body of GET /v1/splits/{split}/statistics."""

    split: str
    fingerprint: str
    dataset_fingerprint: str = Field(description="Of all splits: what is said of others depends on them.")
    roles: Roles
    cps: RateFigures
    embeddings: VectorFigures
    shared: tuple[Shared, ...] = Field(description="One entry for each other split.")
    shift: tuple[Shift, ...] = Field(description="One entry for each other split.")
    baseline: Baseline | None
    notes: tuple[str, ...] = Field(description="What could not be had, and why, in words.")


class Computing(Body, frozen=True):
    """Body of a reply 202: ask again after Retry-After seconds."""

    status: str
    progress: float = Field(ge=0, le=1, description="Share of the work that is done.")


# Points


class Point(Sample, frozen=True):
    """A sample in the plane of the first two principal components."""

    x: float
    y: float


class Projection(Body, frozen=True):
    """Body of GET /v1/splits/{split}/projection: principal components of the samples below."""

    split: str
    fingerprint: str
    num_samples: Count = Field(
        description="Of the split. At most 5,000 are taken (fewer of more than 3,072 dimensions), evenly spaced by index."
    )
    explained_variance_ratio: tuple[float, float] | None = Field(
        description="Share of the variance along x and y; null where there is none."
    )
    points: tuple[Point, ...]
    notes: tuple[str, ...]


class Neighbour(Sample, frozen=True):
    """A sample and how like it is to the one asked for."""

    cosine: float


class Neighbours(Body, frozen=True):
    """Body of GET /v1/splits/{split}/neighbours: the nearest first."""

    split: str
    fingerprint: str
    of: Sample
    neighbours: tuple[Neighbour, ...]
