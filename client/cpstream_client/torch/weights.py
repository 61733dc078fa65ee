"""Weights of samples, for those who train on rare rates."""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Kernel = Literal["gaussian", "triangle", "laplace"]
_KERNELS: dict[str, Any] = {
    "gaussian": lambda distance, sigma: np.exp(-(distance**2) / (2 * sigma**2)),
    "triangle": lambda distance, sigma: np.maximum(0, 1 - np.abs(distance) / (sigma * math.sqrt(6))),
    "laplace": lambda distance, sigma: np.exp(-np.abs(distance) * math.sqrt(2) / sigma),
}
_REACH = 4


def inverse_density_weights(
    cps: npt.ArrayLike | torch.Tensor,
    *,
    bins: int = 100,
    sigma: float = 2.0,
    kernel: Kernel = "gaussian",
    power: float = 1.0,
) -> torch.Tensor:
    """A weight a sample, the larger the rarer rates like its own are; their mean is 1. cps (N,) -> (N,) float64.

    For WeightedRandomSampler, or for a loss. Label distribution smoothing of Yang, Zha, Chen, Wang, Katabi: Delving into Deep
    Imbalanced Regression (ICML 2021, arXiv:2102.09554), section 3.1: the histogram of the labels over `bins` bins of equal width
    from the least to the largest, convolved with a symmetric kernel, is the density that counts, for near labels stand for each
    other; the weight is its inverse. kernel: "gaussian", "triangle" or "laplace", `sigma` bins its standard deviation, cut off at
    4 of them; the sums at the two ends lack what would lie beyond, as zero padding does. power: of the inverse; 0.5 is the paper's
    square-root variant, 0 weights all alike. Labels that are NaN have weight 0.

    Raises ValueError for labels that are infinite, and for bins, sigma, power or kernel out of range.
    """
    labels = np.asarray(cps, np.float64).reshape(-1)
    if np.isinf(labels).any():
        raise ValueError(f"cps has {labels[np.isinf(labels)][0]}; rates are finite, or NaN where there is none")
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be 1 or more")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; it must be larger than 0")
    if not 0 <= power < math.inf:
        raise ValueError(f"power is {power}; it must be 0 or more")
    if kernel not in _KERNELS:
        raise ValueError(f"kernel is {kernel!r}; it must be one of {', '.join(_KERNELS)}")
    weights = np.zeros(len(labels))
    is_known = ~np.isnan(labels)
    known = labels[is_known]
    if not len(known):
        return torch.from_numpy(weights)
    low, width = known.min(), (known.max() - known.min()) / bins
    places = np.minimum((known - low) / width if width else np.zeros(len(known)), bins - 1).astype(np.int64)
    counts = np.bincount(places, minlength=bins).astype(np.float64)
    reach = min(math.ceil(_REACH * sigma), bins - 1)
    window = _KERNELS[kernel](np.arange(-reach, reach + 1), sigma)
    density = np.convolve(counts, window / window.sum(), "full")[reach : reach + bins]
    inverse = density[places] ** -power
    weights[is_known] = inverse / inverse.mean()
    return torch.from_numpy(weights)
