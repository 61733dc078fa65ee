"""Which rows can be served, and which look wrong, by their numbers alone."""

import numpy as np
import numpy.typing as npt

Verdicts = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Which rows hold finite numbers only, and which nothing but zeros. (M,) bool, (M,) bool."""


def judge(rows: npt.NDArray[np.float32]) -> Verdicts:
    """rows (M, D) float32, few enough to be in the processor's cache."""
    # The sum of squares is finite only if every number is, and 0 if all are; it may overflow or vanish, so look again.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
        finite = np.isfinite(squares)
        if not finite.all():
            finite[~finite] = np.isfinite(rows[~finite]).all(axis=1)
    zero = squares == 0
    if zero.any():
        zero[zero] = ~rows[zero].any(axis=1)
    return finite, zero
