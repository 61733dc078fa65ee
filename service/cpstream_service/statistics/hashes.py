"""What rows are compared by before they are compared in whole: a hash for equal ones, a signature for near ones.

Signatures are the signs of the row's products with random hyperplanes (Charikar 2002): of two rows at an angle of a, each of 256
bits differs with probability a / pi. At a cosine of 0.999 that is 1.4 %, and 24 bits agree with 71 %: of 10 bands of 24 bits at
least one agrees but for 4 pairs in a million.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .distributions import Doubles
from .reading import Floats

BITS = 256
BANDS, BAND_BYTES = 10, 3

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint8]
_SEED = 20


def hash_rows(rows: Floats) -> Hashes:
    """Of each row of (B, D): equal rows have equal hashes, other ones hardly ever. -> (B,) uint64."""
    bits = (rows + np.float32(0)).view(np.uint32)  # -0 equals 0
    return bits.astype(np.uint64) @ _factors(rows.shape[1])


def _factors(dimension: int) -> Hashes:
    return np.random.default_rng(_SEED).integers(0, 2**64, dimension, dtype=np.uint64) | np.uint64(1)


@dataclass(frozen=True)
class Signer:
    """Makes signatures of rows of D numbers."""

    dimension: int
    num_bytes: int = BITS // 8
    _planes: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        planes = np.random.default_rng(_SEED).standard_normal((self.dimension, BITS), dtype=np.float32)
        object.__setattr__(self, "_planes", planes)

    def signatures(self, centred: Doubles) -> Signatures:
        """centred (B, D) -> (B, 32) uint8."""
        largest = np.abs(centred).max(axis=1, keepdims=True)  # so that nothing overflows
        scaled = np.divide(centred, largest, out=np.zeros_like(centred), where=largest > 0).astype(np.float32)
        return np.packbits(scaled @ self._planes > 0, axis=1)


def keys(signatures: Signatures, band: int) -> npt.NDArray[np.bytes_]:
    """The signatures as bytes, from a band on and around: sorted, rows that agree in the band lie together, and those that agree in
    more bits next to each other. (N, 32) uint8 -> (N,) of 32 bytes.
    """
    return np.ascontiguousarray(np.roll(signatures, -BAND_BYTES * band, axis=1)).view(f"S{signatures.shape[1]}")[:, 0]


def codes(signatures: Signatures, band: int) -> npt.NDArray[np.uint32]:
    """The bits of a band as a number. (N, 32) uint8 -> (N,)."""
    some = np.zeros((len(signatures), 4), np.uint8)
    some[:, :BAND_BYTES] = signatures[:, BAND_BYTES * band : BAND_BYTES * (band + 1)]
    return some.view(np.uint32)[:, 0]


if hasattr(np, "bitwise_count"):

    def distances(left: Signatures, right: Signatures) -> npt.NDArray[np.int64]:
        """In how many bits each two of (B, 32) differ. -> (B,)."""
        differing: npt.NDArray[np.int64] = np.bitwise_count((left ^ right).view(np.uint64)).sum(axis=1, dtype=np.int64)
        return differing

else:  # numpy 1
    _BITS_OF = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)

    def distances(left: Signatures, right: Signatures) -> npt.NDArray[np.int64]:
        """In how many bits each two of (B, 32) differ. -> (B,)."""
        differing: npt.NDArray[np.int64] = _BITS_OF[left ^ right].sum(axis=1, dtype=np.int64)
        return differing
