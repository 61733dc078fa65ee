"""The rates of several splits in the same bins, so that they can be drawn over one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SAMPLED = 100_000
"""Rates of a split that choose the bins: of more every n-th."""
_FENCE = 3.0
"""Rates farther than so many quartile ranges from the quartiles do not widen the bins: one of 10,000 would take all but one."""
_LEAST, _MOST = 8, 60
"""Bins."""
_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Overlay:
    """counts: samples of each split between the edges, of which there is one more; below, above: how many lie outside of all."""

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    below: Mapping[str, int]
    above: Mapping[str, int]


def overlay(rates: Mapping[str, npt.NDArray[np.floating[Any]]]) -> Overlay:
    """rates: of each split (N,), N > 0, finite. Bins of equal width, at round numbers."""
    edges = _edges(list(rates.values()))
    counts, below, above = {}, {}, {}
    for name, values in rates.items():
        found, _ = np.histogram(values, edges)
        counts[name] = tuple(found.tolist())
        below[name] = int(np.count_nonzero(values < edges[0]))
        above[name] = int(np.count_nonzero(values > edges[-1]))
    return Overlay(tuple(edges.tolist()), counts, below, above)


def _edges(rates: list[npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.float64]:
    """Over what lies within the fences of any split; as wide as the narrowest split asks by the rule of Freedman and Diaconis."""
    lows, highs, widths = [], [], []
    for values in rates:
        some = values[:: -(-len(values) // _SAMPLED)].astype(np.float64)
        low, lower, upper, high = np.quantile(some, [0, 0.25, 0.75, 1]).tolist()
        spread = upper - lower
        lows.append(max(low, lower - _FENCE * spread) if spread else low)
        highs.append(min(high, upper + _FENCE * spread) if spread else high)
        widths.append(2 * spread * len(some) ** (-1 / 3))
    low, high = min(lows), max(highs)
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    wanted = min([width for width in widths if width > 0], default=(high - low) / _LEAST)
    step = _round_step(min(max(wanted, (high - low) / _MOST), (high - low) / _LEAST))
    first, last = np.floor(low / step), np.ceil(high / step)
    return np.arange(first, last + 1) * step


def _round_step(width: float) -> float:
    """The nearest of 1, 2, 5, 10, ... and their tenths, as a ratio."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(min((*_STEPS, 10.0), key=lambda step: abs(np.log(step * power / width))) * power)
