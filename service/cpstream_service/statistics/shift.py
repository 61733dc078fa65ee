"""How two splits differ: in their rates, and in where their embeddings lie."""

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.figures import Shift

from .moments import Moments


def shift(name: str, cps: npt.NDArray[np.float32], ours: Moments, other_cps: npt.NDArray[np.float32], theirs: Moments) -> Shift:
    """Of a split against the one of this name. cps, other_cps: ascending."""
    difference = ours.mean_cps - theirs.mean_cps
    spread = float(np.sqrt((cps.var(dtype=np.float64) + other_cps.var(dtype=np.float64)) / 2))
    distance, effect, by_chance = _of_embeddings(ours, theirs) if len(ours.sums) == len(theirs.sums) else (None, None, None)
    return Shift(
        split=name,
        cps_difference=difference,
        cps_effect=difference / spread if spread > 0 else None,
        cps_ks=kolmogorov_smirnov(cps, other_cps),
        embedding_distance=distance,
        embedding_effect=effect,
        embedding_by_chance=by_chance,
    )


def _of_embeddings(ours: Moments, theirs: Moments) -> tuple[float, float | None, float | None]:
    """The distance of the means; the same, and what chance makes of it, in units of the spread, None where there is none."""
    distance = float(np.linalg.norm(ours.mean - theirs.mean))
    own, other = float(ours.variances.sum()), float(theirs.variances.sum())
    spread = float(np.sqrt((own + other) / 2))
    if not spread > 0:
        return distance, None, None
    return distance, distance / spread, float(np.sqrt(own / ours.count + other / theirs.count)) / spread


def kolmogorov_smirnov(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    """The largest difference of both distribution functions. left, right: ascending."""
    values = np.concatenate([left, right])
    shares = [np.searchsorted(each, values, "right") / len(each) for each in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())
