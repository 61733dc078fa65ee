"""The embeddings of a split in figures."""

import numpy as np

from cpstream_client.contract.figures import Dimensions, VectorFigures

from ..align.drops import MAX_EXAMPLES
from ..snapshot.store import Split
from .alike import equal_within
from .distributions import Doubles, distribution
from .moments import MAX_GRAM_DIMENSION, Moments
from .reading import Indices

NEAR_CONSTANT = 1e-3


def vector_figures(split: Split, found: Moments, eigenvalues: Doubles | None, notes: list[str]) -> VectorFigures:
    """eigenvalues: of the centred Gram matrix, ascending; None where the dimension is too large. notes: gets what is missing."""
    zero = np.flatnonzero(found.norms == 0)
    constant = np.flatnonzero(found.lows == found.highs)
    deviations = np.sqrt(found.variances)
    near = np.flatnonzero((found.lows != found.highs) & (deviations < NEAR_CONSTANT * np.median(deviations)))
    mean_cosine = _mean_cosine(found, len(zero))
    if mean_cosine is None:
        notes.append("no mean cosine: fewer than two embeddings are not all zero")
    effective_rank = participation = None
    if eigenvalues is None:
        notes.append(f"no effective rank: the dimension exceeds {MAX_GRAM_DIMENSION}")
    elif eigenvalues[-1] <= 0:
        notes.append("no effective rank: all embeddings are the same")
    else:
        effective_rank, participation = ranks(eigenvalues)
    return VectorFigures(
        dimension=len(found.sums),
        norms=distribution(found.norms),
        num_zero=len(zero),
        zero_examples=tuple(split.file_paths[index].as_py() for index in zero[:MAX_EXAMPLES].tolist()),
        constant=_dimensions(constant),
        near_constant=_dimensions(near),
        duplicates=equal_within(split, found.hashes),
        mean_cosine=mean_cosine,
        effective_rank=effective_rank,
        participation_ratio=participation,
    )


def _mean_cosine(found: Moments, num_zero: int) -> float | None:
    """Over all pairs at once: |sum of u|^2 of unit vectors u is their number and twice the sum of the cosines of all pairs."""
    count = found.count - num_zero
    if count < 2:
        return None
    return float((found.units @ found.units - count) / (count * (count - 1)))


def ranks(eigenvalues: Doubles) -> tuple[float, float]:
    """Effective rank (Roy and Vetterli 2007: e to the entropy of the singular values' shares) and participation ratio."""
    held = np.where(eigenvalues > eigenvalues[-1] * len(eigenvalues) * np.finfo(np.float64).eps, eigenvalues, 0)
    shares = np.sqrt(held) / np.sqrt(held).sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum())), float(held.sum() ** 2 / (held**2).sum())


def _dimensions(which: Indices) -> Dimensions:
    return Dimensions(count=len(which), examples=tuple(which[:MAX_EXAMPLES].tolist()))
