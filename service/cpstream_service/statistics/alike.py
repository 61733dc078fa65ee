"""Samples that have a like: equal embeddings within a split or of two, and nearly equal ones of two."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpstream_client.contract.figures import FoundPairs, Pair

from ..align.drops import MAX_EXAMPLES
from ..snapshot.store import Split
from .distributions import Doubles
from .hashes import BANDS, Hashes, Signatures, codes, distances, keys
from .reading import Indices, rows_at

NEAR_COSINE = 0.999
MOST_BITS = 16
"""In which the signatures of two rows at that cosine differ: 3.6 on average, and 16 in one pair of a million."""
REACH = 16
"""Of the other split's rows that agree in a band so many are looked at on either side, those that agree in more bits first."""
MOST_COMPARED = 50_000
"""Pairs of two splits whose embeddings are read for one band, in each direction; some 5 microseconds each."""
_AT_ONCE = 5_000
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


@dataclass(frozen=True)
class Near:
    """For each row of a split a near one of the other, -1 where none was found, and their cosine. (N,)

    is_partial: of some rows not all candidates were compared.
    """

    others: Indices
    cosines: Doubles
    is_partial: bool


def near_of(split: Split, signs: Signatures, other: Split, other_signs: Signatures, mean: Doubles) -> Near:
    """Which samples have in the other split one of which the cosine, less `mean`, is NEAR_COSINE or more."""
    others, cosines = np.full(len(signs), -1), np.zeros(len(signs))
    is_crowded, is_cut = np.zeros(len(signs), bool), False
    for band in range(BANDS):
        rows, candidates = _candidates(np.flatnonzero(others < 0), signs, other_signs, band, is_crowded)
        is_cut |= len(rows) > MOST_COMPARED
        for low in range(0, min(len(rows), MOST_COMPARED), _AT_ONCE):
            some, likes = rows[low : low + _AT_ONCE], candidates[low : low + _AT_ONCE]
            is_open = others[some] < 0
            some, likes = some[is_open], likes[is_open]
            found = _cosines(split, some, other, likes, mean)
            near = found >= NEAR_COSINE
            others[some[near]], cosines[some[near]] = likes[near], found[near]
    return Near(others, cosines, (is_cut or bool(is_crowded.any())) and bool((others < 0).any()))


def _candidates(
    rows: Indices, signs: Signatures, other_signs: Signatures, band: int, is_crowded: npt.NDArray[np.bool_]
) -> tuple[Indices, Indices]:
    """These rows, and such of the other split as agree with them in a band and hardly differ in the rest, the most alike first.

    Looks at REACH of the others on either side in the order of keys(), and notes in is_crowded where there are more.
    """
    order, ours = np.argsort(keys(other_signs, band)), keys(signs, band)
    rows = rows[np.argsort(ours[rows])]  # so that the search goes on where it was
    bands, other_bands = codes(signs, band), codes(other_signs, band)[order]
    start = np.searchsorted(keys(other_signs, band)[order], ours[rows])
    found: list[tuple[Indices, Indices, Indices]] = []
    for step in (1, -1):
        asking, at = rows, start if step > 0 else start - 1
        for reach in range(REACH + 1):
            inside = (at >= 0) & (at < len(order))
            asking, at = asking[inside], at[inside]
            agree = other_bands[at] == bands[asking]
            asking, at = asking[agree], at[agree]
            if reach == REACH:
                is_crowded[asking] = True
                break
            candidates = order[at]
            bits = distances(signs[asking], other_signs[candidates])
            alike = bits <= MOST_BITS
            found.append((asking[alike], candidates[alike], bits[alike]))
            at = at + step
    asked, candidates, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    nearest = np.argsort(bits, kind="stable")
    return asked[nearest], candidates[nearest]


def near_pairs(split: Split, other: Split, near: Near) -> FoundPairs:
    rows = np.flatnonzero(near.others >= 0)
    return _found(split, other, rows, near.others[rows], near.cosines[rows])


def _cosines(left: Split, rows: Indices, right: Split, others: Indices, mean: Doubles) -> Doubles:
    """Of the embeddings less the mean; 0 where one of them is the mean."""
    cosines = np.zeros(len(rows))
    for low in range(0, len(rows), _ROWS):
        ours = rows_at(left, rows[low : low + _ROWS]) - mean
        theirs = rows_at(right, others[low : low + _ROWS]) - mean
        lengths = np.sqrt(np.einsum("ij,ij->i", ours, ours) * np.einsum("ij,ij->i", theirs, theirs))
        products = np.einsum("ij,ij->i", ours, theirs)
        np.divide(products, lengths, out=cosines[low : low + _ROWS], where=lengths > 0)
    return np.minimum(cosines, 1)


def _equal(left: Split, rows: Indices, right: Split, others: Indices) -> npt.NDArray[np.bool_]:
    """Whether the embeddings are equal, not only their hashes. (B,), (B,) -> (B,)."""
    same = np.empty(len(rows), bool)
    for low in range(0, len(rows), _ROWS):
        at = slice(low, low + _ROWS)
        same[at] = (rows_at(left, rows[at]) == rows_at(right, others[at])).all(axis=1)
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
