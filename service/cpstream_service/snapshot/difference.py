"""What two versions of a split differ in: which recordings came, went, or have another embedding, rate or label."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ..arrow import values
from ..errors import Overloaded
from ..sources.rows import rows_per_chunk
from .store import Split

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """added: indices in the new split; removed: in the old one; both ascending. num_same: samples that are the same to the bit.

    changed: pairs of indices, old and new, (K, 2), of samples of one path that differ in at least one bit; by_embedding, by_rate,
    by_label (K,) say in what.
    """

    added: Indices
    removed: Indices
    changed: Indices
    by_embedding: Mask
    by_rate: Mask
    by_label: Mask
    num_same: int


def difference(old: Split, new: Split) -> Difference:
    """Compare by path, to the bit. Reads both splits whole, a few MB at a time: not for the event loop."""
    import pyarrow as pa
    import pyarrow.compute as pc  # 20 ms

    found = pc.index_in(new.file_paths, value_set=old.file_paths)
    at_old = np.full(len(found), -1, np.int64)
    is_there = values(pc.cast(found.is_valid(), pa.uint8()), np.uint8).astype(np.bool_)
    at_old[is_there] = values(found, np.int32)[is_there]
    added, in_new = np.flatnonzero(at_old < 0), np.flatnonzero(at_old >= 0)
    in_old = at_old[in_new]
    is_left = np.ones(len(old.cps), np.bool_)
    is_left[in_old] = False
    by_embedding = _embeddings_differ(old, new, in_old, in_new)
    by_rate = _bits(old.cps[in_old]) != _bits(new.cps[in_new])
    by_label = np.full(len(in_new), old.labels.keys() != new.labels.keys())
    for name in old.labels.keys() & new.labels.keys():
        by_label |= _bits(old.labels[name][in_old]) != _bits(new.labels[name][in_new])
    differ = by_embedding | by_rate | by_label
    changed = np.stack([in_old[differ], in_new[differ]], axis=1)
    num_same = len(differ) - len(changed)
    return Difference(added, np.flatnonzero(is_left), changed, by_embedding[differ], by_rate[differ], by_label[differ], num_same)


def _bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """NaN equals itself then, and 0.0 is not -0.0."""
    return np.ascontiguousarray(values).view(np.uint32)


def _embeddings_differ(old: Split, new: Split, in_old: Indices, in_new: Indices) -> Mask:
    if old.embeddings.shape[1] != new.embeddings.shape[1]:
        return np.ones(len(in_new), np.bool_)
    differ = np.empty(len(in_new), np.bool_)
    rows = rows_per_chunk(new.embeddings.shape[1], _CHUNK_BYTES)
    for low in range(0, len(in_new), rows):
        one, other = old.embeddings[in_old[low : low + rows]], new.embeddings[in_new[low : low + rows]]
        differ[low : low + rows] = (_bits(one) != _bits(other)).any(axis=1)
    return differ


class Differences:
    """Those that were asked for, for as long as both splits are held. One is computed at a time. Safe between threads."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Split, WeakKeyDictionary[Split, Difference]] = WeakKeyDictionary()
        self._busy = threading.Lock()

    def of(self, old: Split, new: Split) -> Difference:
        """Raises Overloaded while another one is computed."""
        of_old = self._known.setdefault(old, WeakKeyDictionary())
        found = of_old.get(new)
        if found is None:
            with self._alone():
                found = of_old[new] = difference(old, new)
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise Overloaded("another two versions are being compared, and these are one pair at a time; ask again in a second")
        try:
            yield
        finally:
            self._busy.release()
