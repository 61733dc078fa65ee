"""The embeddings of a split, read a piece at a time: not through the map, whose pages would count as memory of this process."""

import mmap
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..snapshot.store import EMBEDDINGS, Split
from ..sources.rows import rows_per_chunk

PIECE_BYTES = 8 << 20
_FAULTS = 64

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def pieces(split: Split) -> Iterator[tuple[int, Floats]]:
    """Index of the first row, and rows (B, D), whose memory is used again for the next ones. Raises OSError."""
    count, dimension = split.embeddings.shape
    rows = rows_per_chunk(dimension, PIECE_BYTES)
    buffer = np.empty((min(rows, count), dimension), np.float32)
    with (split.path / EMBEDDINGS).open("rb", buffering=0) as file:
        file.seek(getattr(split.embeddings, "offset", 0))
        for low in range(0, count, rows):
            piece = buffer[: min(rows, count - low)]
            view = piece.reshape(-1).view(np.uint8).data
            while view:
                got = file.readinto(view)
                if not got:
                    raise OSError(f"{EMBEDDINGS} of split {split.name!r} ends before its last row; restart the service")
                view = view[got:]
            yield low, piece


def rows_at(split: Split, indices: Indices) -> Floats:
    """The embeddings of these samples (B, D), through the map, of which nothing stays: a fault brings up to 2 MB of it."""
    rows = np.empty((len(indices), split.embeddings.shape[1]), np.float32)
    mapped, embeddings = getattr(split.embeddings, "_mmap", None), np.asarray(split.embeddings)
    for low in range(0, len(indices), _FAULTS):
        rows[low : low + _FAULTS] = embeddings[indices[low : low + _FAULTS]]
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
    return rows


def spread_out(count: int, most: int) -> Indices:
    """At most so many of the first `count` indices, evenly spaced: the same ones everywhere."""
    taken = min(count, most)
    return np.arange(taken, dtype=np.int64) * count // max(taken, 1)
