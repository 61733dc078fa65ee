"""One pass over a split: sums, the Gram matrix, and a hash and a signature of each row.

Sums are of rows less a centre that is the same for all splits and near to their mean: in float64 nothing is lost to the differences
of large numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..snapshot.store import Split
from .distributions import Doubles
from .hashes import Hashes, Signer, hash_rows
from .reading import pieces, rows_at, spread_out

MAX_GRAM_DIMENSION = 3072
"""Of a larger embedding the D x D matrices would take more memory than this may: 75 MB each, four of them for eigenvectors."""
_CENTRE_ROWS = 512


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a split of N rows x (D,), with y their rates; c is the centre.

    sums: of x - c, (D,); squares: of each (x - c)^2, (D,); units: sum of x / |x|, (D,); lows, highs (D,); norms (N,);
    gram: (x - c)^T (x - c), (D, D), and cross: (x - c)^T (y - mean of y), (D,), where D is not too large; hashes (N,) uint64;
    signatures (N, S) uint8, of no bytes where they are not wanted.
    """

    count: int
    centre: Doubles
    sums: Doubles
    squares: Doubles
    units: Doubles
    lows: npt.NDArray[np.float32]
    highs: npt.NDArray[np.float32]
    norms: Doubles
    mean_cps: float
    gram: Doubles | None
    cross: Doubles
    hashes: Hashes
    signatures: npt.NDArray[np.uint8]

    @property
    def mean(self) -> Doubles:
        return self.centre + self.sums / self.count

    @property
    def variances(self) -> Doubles:
        """Of each dimension, the population's. (D,)"""
        variances = np.maximum(self.squares / self.count - (self.sums / self.count) ** 2, 0)
        variances[self.lows == self.highs] = 0
        return variances

    def centred_gram(self) -> Doubles:
        """(x - mean)^T (x - mean), (D, D): in place of the Gram matrix, to be asked for once."""
        assert self.gram is not None  # noqa: S101
        self.gram[...] -= np.outer(self.sums, self.sums / self.count)
        constant = self.lows == self.highs
        self.gram[constant] = self.gram[:, constant] = 0
        return self.gram


def centre_of(splits: list[Split]) -> Doubles:
    """About the mean of all splits. (D,)"""
    taken = [rows_at(split, spread_out(len(split.cps), _CENTRE_ROWS)).mean(axis=0, dtype=np.float64) for split in splits]
    centre: Doubles = np.mean(taken, axis=0)
    return centre


def moments(split: Split, centre: Doubles, signer: Signer | None, done: Callable[[int], None]) -> Moments:
    """signer: where signatures are wanted. done: told of rows that have been passed. Raises OSError."""
    count, dimension = split.embeddings.shape
    sums, squares, units, cross = (np.zeros(dimension) for _ in range(4))
    lows, highs = np.full(dimension, np.inf, np.float32), np.full(dimension, -np.inf, np.float32)
    gram = np.zeros((dimension, dimension)) if dimension <= MAX_GRAM_DIMENSION else None
    norms, hashes = np.empty(count), np.empty(count, np.uint64)
    signatures = np.empty((count, 0 if signer is None else signer.num_bytes), np.uint8)
    cps = split.cps.astype(np.float64)
    mean_cps = float(cps.mean())
    for low, rows in pieces(split):
        at = slice(low, low + len(rows))
        hashes[at] = hash_rows(rows)
        np.minimum(lows, rows.min(axis=0), out=lows)
        np.maximum(highs, rows.max(axis=0), out=highs)
        doubles = rows.astype(np.float64)
        norms[at] = np.sqrt(np.einsum("ij,ij->i", doubles, doubles))
        units += np.divide(1, norms[at], out=np.zeros(len(rows)), where=norms[at] > 0) @ doubles
        doubles -= centre
        if signer is not None:
            signatures[at] = signer.signatures(doubles)
        sums += doubles.sum(axis=0)
        cross += (cps[at] - mean_cps) @ doubles
        if gram is not None:
            gram += doubles.T @ doubles  # the BLAS sees that both are the same, and computes half of it
        doubles *= doubles
        squares += doubles.sum(axis=0)
        done(len(rows))
    cross[lows == highs] = 0
    return Moments(count, centre, sums, squares, units, lows, highs, norms, mean_cps, gram, cross, hashes, signatures)
