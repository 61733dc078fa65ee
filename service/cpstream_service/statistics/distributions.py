"""How the values of one number a sample are distributed: moments, quartiles, a histogram by a standard rule."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.figures import Distribution, Histogram, RateFigures

from ..align.align import USUAL_CPS

Doubles = npt.NDArray[np.float64]
MAX_BINS = 200
"""More are nothing to look at; and one outlier among many values has the rule ask for millions."""


def distribution(values: npt.NDArray[np.floating[Any]]) -> Distribution:
    """values (N,), N > 0, finite."""
    doubles = values.astype(np.float64)
    low, lower, median, upper, high = np.quantile(doubles, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return Distribution(
        count=len(doubles),
        mean=float(doubles.mean()),
        std=float(doubles.std()),
        min=low,
        quartiles=(lower, median, upper),
        max=high,
        histogram=histogram(doubles, upper - lower),
    )


def histogram(values: Doubles, quartile_range: float) -> Histogram:
    """Bins by the rule of Freedman and Diaconis, or by Sturges' where half of the values are equal; at most MAX_BINS."""
    low, high = float(values.min()), float(values.max())
    width, rule = 2 * quartile_range * len(values) ** (-1 / 3), "freedman-diaconis"
    if width <= 0:
        width, rule = (high - low) / (np.log2(len(values)) + 1), "sturges"
    bins = int(min(np.ceil((high - low) / width), MAX_BINS + 1)) if width > 0 else 1
    if bins > MAX_BINS:
        bins, rule = MAX_BINS, f"equal-{MAX_BINS}"
    edges = np.linspace(low, high, max(bins, 1) + 1)
    if (np.diff(edges) <= 0).any():  # equal values, or as good as equal: one bin about them
        half = max(0.5, abs(low) * 1e-9)
        edges = np.array([low - half, high + half])
    counts, _ = np.histogram(values, edges)
    return Histogram(rule=rule, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def rate_figures(cps: npt.NDArray[np.float32]) -> RateFigures:
    """CPS of a split (N,), N > 0, as the alignment has checked it: finite and positive."""
    unusual = int(np.count_nonzero((cps < USUAL_CPS[0]) | (cps > USUAL_CPS[1])))
    return RateFigures(**dict(distribution(cps)), num_unusual=unusual, unusual_share=unusual / len(cps))
