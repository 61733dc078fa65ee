"""Samples that have a like: equal embeddings within a split or of two, and nearly equal ones of two."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.figures import FoundPairs, Pair

from ..align.drops import MAX_EXAMPLES
from ..snapshot.store import Split
from .distributions import Doubles
from .hashes import Hashes, Signatures, bands, distances
from .reading import Indices

NEAR_COSINE = 0.999
MOST_BITS = 16
"""In which the signatures of two rows at that cosine differ: 3.6 on average, and 16 in one pair of a million."""
MOST_OF_BAND = 32
"""Of the other split's rows that agree in a band so many are looked at."""
MOST_COMPARED = 500_000
"""Pairs of two splits whose embeddings are read; some 5 microseconds each."""
_ROWS = 1024


def equal_within(split: Split, hashes: Hashes) -> FoundPairs:
    """Samples whose embedding equals that of an earlier one: all but the first of equal ones."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]]
    firsts = order[is_first][np.cumsum(is_first) - 1]  # for each row in this order the first one of its hash
    rows, others = order[~is_first], firsts[~is_first]
    by_row = np.argsort(rows)
    rows, others = rows[by_row], others[by_row]
    same = _equal(split, rows, split, others)
    return _found(split, split, rows[same], others[same])


def equal_between(left: Split, left_hashes: Hashes, right: Split, right_hashes: Hashes) -> tuple[FoundPairs, FoundPairs]:
    """Samples of each split whose embedding one of the other split equals."""
    return (
        _equal_of(left, left_hashes, right, right_hashes),
        _equal_of(right, right_hashes, left, left_hashes),
    )


def _equal_of(split: Split, hashes: Hashes, other: Split, other_hashes: Hashes) -> FoundPairs:
    values, firsts = np.unique(other_hashes, return_index=True)
    at = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
    rows = np.flatnonzero(values[at] == hashes)
    others = firsts[at[rows]]
    same = _equal(split, rows, other, others)
    return _found(split, other, rows[same], others[same])


@dataclass
class NearPairs:
    """For samples of two splits a near one of the other, -1 where none was found. is_partial: not all candidates were compared."""

    left: Indices
    right: Indices
    left_cosines: Doubles = field(init=False)
    right_cosines: Doubles = field(init=False)
    is_partial: bool = False

    def __post_init__(self) -> None:
        self.left_cosines, self.right_cosines = np.zeros(len(self.left)), np.zeros(len(self.right))

    def note(self, rows: Indices, others: Indices, cosines: Doubles) -> None:
        self.left[rows], self.left_cosines[rows] = others, cosines
        self.right[others], self.right_cosines[others] = rows, cosines


def near_between(left: Split, left_signs: Signatures, right: Split, right_signs: Signatures, mean: Doubles) -> NearPairs:
    """Samples of each split of which one of the other has, less `mean`, a cosine of NEAR_COSINE or more."""
    found = NearPairs(np.full(len(left_signs), -1), np.full(len(right_signs), -1))
    left_to_spend = MOST_COMPARED
    for left_codes, right_codes in zip(bands(left_signs), bands(right_signs), strict=True):
        for rows, others in _candidates(left_codes, right_codes, found):
            is_open = (found.left[rows] < 0) | (found.right[others] < 0)
            rows, others = rows[is_open], others[is_open]
            close = distances(left_signs[rows], right_signs[others]) <= MOST_BITS
            rows, others = rows[close], others[close]
            if len(rows) > left_to_spend:
                found.is_partial = True
                rows, others = rows[:left_to_spend], others[:left_to_spend]
            left_to_spend -= len(rows)
            cosines = _cosines(left, rows, right, others, mean)
            near = cosines >= NEAR_COSINE
            found.note(rows[near], others[near], cosines[near])
    return found


def _candidates(left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32], found: NearPairs) -> Iterator[tuple[Indices, Indices]]:
    """Pairs whose codes agree: of each row of the left with one of the right at a time, then with the next."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    lows, highs = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
    sizes = highs - lows
    rows = np.flatnonzero(sizes)
    for nth in range(MOST_OF_BAND):
        rows = rows[sizes[rows] > nth]
        if not len(rows):
            return
        yield rows, order[lows[rows] + nth]
    found.is_partial |= bool((sizes[rows] > MOST_OF_BAND).any())


def near_pairs(split: Split, other: Split, near: Indices, cosines: Doubles) -> FoundPairs:
    rows = np.flatnonzero(near >= 0)
    return _found(split, other, rows, near[rows], cosines[rows])


def _cosines(left: Split, rows: Indices, right: Split, others: Indices, mean: Doubles) -> Doubles:
    """Of the embeddings less the mean; 0 where one of them is the mean."""
    cosines = np.zeros(len(rows))
    for low in range(0, len(rows), _ROWS):
        ours = left.embeddings[rows[low : low + _ROWS]] - mean
        theirs = right.embeddings[others[low : low + _ROWS]] - mean
        lengths = np.sqrt(np.einsum("ij,ij->i", ours, ours) * np.einsum("ij,ij->i", theirs, theirs))
        products = np.einsum("ij,ij->i", ours, theirs)
        np.divide(products, lengths, out=cosines[low : low + _ROWS], where=lengths > 0)
    return np.minimum(cosines, 1)


def _equal(left: Split, rows: Indices, right: Split, others: Indices) -> npt.NDArray[np.bool_]:
    """Whether the embeddings are equal, not only their hashes. (B,), (B,) -> (B,)."""
    same = np.empty(len(rows), bool)
    for low in range(0, len(rows), _ROWS):
        at = slice(low, low + _ROWS)
        same[at] = (left.embeddings[rows[at]] == right.embeddings[others[at]]).all(axis=1)
    return same


def _found(split: Split, other: Split, rows: Indices, others: Indices, cosines: Doubles | None = None) -> FoundPairs:
    examples = tuple(
        Pair(
            file_path=split.file_paths[row].as_py(),
            other=other.file_paths[like].as_py(),
            cosine=None if cosines is None else round(float(cosines[at]), 6),
        )
        for at, (row, like) in enumerate(zip(rows[:MAX_EXAMPLES].tolist(), others[:MAX_EXAMPLES].tolist(), strict=True))
    )
    return FoundPairs(count=len(rows), examples=examples)
