"""The first two principal components of a split: where its samples lie, to look at."""

import numpy as np

from ..snapshot.store import Split
from .distributions import Doubles
from .reading import Indices, rows_at, spread_out

MAX_POINTS = 5000
_MAX_NUMBERS, _MAX_ORDER = 1 << 24, 3072
"""Of the points' embeddings and of the smaller Gram matrix: 128 MB of numbers, and 75 MB four times for its eigenvectors."""


def projected(split: Split) -> tuple[Indices, Doubles, tuple[float, float] | None]:
    """Indices (P,) of the samples taken, where they lie (P, 2), and the shares of their variance, None where there is none.

    As scikit-learn's PCA(2) of these samples, signs included: the largest weight of each component is positive. Of the two Gram
    matrices the smaller one.
    """
    dimension = split.embeddings.shape[1]
    most = min(MAX_POINTS, max(_MAX_NUMBERS // dimension, 2))
    indices = spread_out(len(split.cps), most if dimension <= _MAX_ORDER else min(most, _MAX_ORDER))
    rows = rows_at(split, indices).astype(np.float64)
    rows -= rows.mean(axis=0)
    total = float(np.einsum("ij,ij->", rows, rows))
    points = np.zeros((len(rows), 2))
    if not total > 0:
        return indices, points, None
    is_wide = rows.shape[1] > len(rows)
    values, vectors = np.linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)
    shares = [0.0, 0.0]
    for component in range(min(2, len(values))):
        value, vector = float(values[-1 - component]), vectors[:, -1 - component]
        if value <= total * np.finfo(np.float64).eps * len(values):
            break
        weights = rows.T @ vector / np.sqrt(value) if is_wide else vector
        sign = np.sign(weights[np.abs(weights).argmax()])
        points[:, component] = rows @ weights * sign
        shares[component] = value / total
    return indices, points, (shares[0], shares[1])
