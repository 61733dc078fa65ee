"""The samples nearest to one by cosine: exact, by going through all embeddings where the snapshot has them mapped."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ..errors import InvalidParameter, Overloaded
from ..snapshot.store import Split
from ..sources.rows import rows_per_chunk
from .distributions import Doubles
from .reading import Indices

_CHUNK_BYTES = 16 << 20
_REMEMBERED = 4
_SANE = (1e-15, 1e15)
"""Norms whose squares and products float32 can hold."""


class Searches:
    """Goes through one split at a time, and remembers the norms of the last few. One a process; of any thread."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._norms: OrderedDict[str, Doubles] = OrderedDict()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises Overloaded while another search goes on."""
        if not self._busy.acquire(blocking=False):
            raise Overloaded("another search for neighbours is going on, and there is one at a time; ask again in a second")
        try:
            yield
        finally:
            self._busy.release()

    def nearest(self, split: Split, index: int, k: int) -> tuple[Indices, Doubles]:
        """Indices and cosines of the k samples nearest to this one, itself and all-zero ones left out, the nearest first.

        Of equal cosines the lower index comes first. Raises InvalidParameter for an all-zero embedding.
        """
        norms = self._norms.get(split.fingerprint)
        if norms is None:
            norms = self._norms[split.fingerprint] = _norms_of(np.asarray(split.embeddings))
        self._norms.move_to_end(split.fingerprint)
        while len(self._norms) > _REMEMBERED:
            self._norms.popitem(last=False)
        return nearest(np.asarray(split.embeddings), norms, index, k)


def nearest(embeddings: npt.NDArray[np.float32], norms: Doubles, index: int, k: int) -> tuple[Indices, Doubles]:
    """embeddings (N, D), norms (N,). In float32 first, and in float64 what comes so near that rounding may have misplaced it."""
    count, dimension = embeddings.shape
    if not norms[index]:
        raise InvalidParameter(f"index {index} has an all-zero embedding, of which there is no cosine; ask for another sample")
    unit = embeddings[index].astype(np.float64)
    unit /= np.sqrt(unit @ unit)
    cosines = np.empty(count, np.float32)
    single, rows = unit.astype(np.float32), rows_per_chunk(dimension, _CHUNK_BYTES)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for low in range(0, count, rows):
            np.dot(embeddings[low : low + rows], single, out=cosines[low : low + rows])
        cosines /= norms
    odd = np.flatnonzero((norms < _SANE[0]) | (norms > _SANE[1]))
    cosines[odd] = _exact(embeddings, norms, odd, unit)
    left_out = norms == 0
    left_out[index] = True
    cosines[left_out] = -np.inf
    wanted = min(k, count - int(np.count_nonzero(left_out)))
    if not wanted:
        return np.empty(0, np.int64), np.empty(0)
    last = np.partition(cosines, count - wanted)[count - wanted]
    rounding = 4 * (dimension + 4) * np.finfo(np.float32).eps  # of a sum of D products, twice, with room
    candidates = np.flatnonzero((cosines >= last - rounding) & ~left_out)
    exact = np.round(_exact(embeddings, norms, candidates, unit), 12)
    order = np.lexsort((candidates, -exact))[:wanted]
    return candidates[order], exact[order]


def _exact(embeddings: npt.NDArray[np.float32], norms: Doubles, indices: Indices, unit: Doubles) -> Doubles:
    """Cosines in float64 of these samples and the one of this unit vector."""
    found, rows = np.zeros(len(indices)), rows_per_chunk(embeddings.shape[1], _CHUNK_BYTES)
    for low in range(0, len(indices), rows):
        some = embeddings[indices[low : low + rows]].astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", some, some))
        np.divide(some @ unit, lengths, out=found[low : low + rows], where=lengths > 0)
    return np.clip(found, -1, 1)


def _norms_of(embeddings: npt.NDArray[np.float32]) -> Doubles:
    """(N, D) -> (N,). In float32, but for rows whose squares that cannot hold."""
    norms, rows = np.empty(len(embeddings)), rows_per_chunk(embeddings.shape[1], _CHUNK_BYTES)
    with np.errstate(over="ignore", under="ignore"):
        for low in range(0, len(embeddings), rows):
            some = embeddings[low : low + rows]
            norms[low : low + rows] = np.sqrt(np.einsum("ij,ij->i", some, some))
    odd = np.flatnonzero(~((norms > _SANE[0]) & (norms < _SANE[1])))
    for low in range(0, len(odd), rows):
        some = embeddings[odd[low : low + rows]].astype(np.float64)
        norms[odd[low : low + rows]] = np.sqrt(np.einsum("ij,ij->i", some, some))
    return norms
