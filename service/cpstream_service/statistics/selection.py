"""Rows to look at: those that match what is searched for, in the order asked."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ..arrow import values
from ..snapshot.store import Split
from .reading import Indices

Int32s = npt.NDArray[np.int32]
_REMEMBERED = 8
"""Orders and selections: of a million samples each takes up to 4 MB, and making one 0.2 s."""


@dataclass(frozen=True)
class Wanted:
    """search: part of the path, in whatever case; least, most: of the CPS, inclusive; sort: index, file_path, cps or a label.

    Of equal values the lower index comes first, and a label that a sample does not have comes last, descending or not.
    """

    search: str | None = None
    least: float | None = None
    most: float | None = None
    sort: str = "index"
    descending: bool = False

    @property
    def is_all(self) -> bool:
        return self.search is None and self.least is None and self.most is None


class Selections:
    """Which rows of a split are wanted, in which order, one request at a time. Remembers the last few."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, Int32s] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, split: Split, wanted: Wanted, offset: int, length: int | None) -> tuple[Indices, int]:
        """Indices of the wanted rows from offset on, at most `length`, and how many are wanted in all. (B,) int64."""
        count = len(split.cps)
        if wanted == Wanted():  # the most usual page costs nothing
            return np.arange(offset, count if length is None else min(offset + length, count), dtype=np.int64), count
        with self._lock:
            found = self._remembered((split.fingerprint, wanted), lambda: self._select(split, wanted))
        return found[offset : None if length is None else offset + length].astype(np.int64), len(found)

    def _select(self, split: Split, wanted: Wanted) -> Int32s:
        column = wanted.sort, wanted.descending
        order = self._remembered((split.fingerprint, column), lambda: _order(split, *column))
        return order if wanted.is_all else order[_matches(split, wanted)[order]]

    def _remembered(self, key: Hashable, make: Callable[[], Int32s]) -> Int32s:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        self._made.move_to_end(key)
        while len(self._made) > _REMEMBERED:
            self._made.popitem(last=False)
        return found


def _matches(split: Split, wanted: Wanted) -> npt.NDArray[np.bool_]:
    """Whether each row matches. (N,)"""
    matches = np.ones(len(split.cps), bool)
    cps = np.asarray(split.cps).astype(np.float64)
    if wanted.least is not None:
        matches &= cps >= wanted.least
    if wanted.most is not None:
        matches &= cps <= wanted.most
    if wanted.search is not None:
        found = pc.indices_nonzero(pc.match_substring(split.file_paths, wanted.search, ignore_case=True))
        has_it = np.zeros(len(matches), bool)
        has_it[values(found, np.uint64)] = True
        matches &= has_it
    return matches


def _order(split: Split, column: str, descending: bool) -> Int32s:
    """All indices in the order of a column."""
    count = len(split.cps)
    if column == "index":
        order = np.arange(count, dtype=np.int32)
        return order[::-1] if descending else order
    if column == "file_path":
        found = pc.array_sort_indices(split.file_paths, order="descending" if descending else "ascending")
        return values(found, np.uint64).astype(np.int32)
    keys = np.asarray(split.cps if column == "cps" else split.labels[column])
    return np.argsort(-keys if descending else keys, kind="stable").astype(np.int32)
