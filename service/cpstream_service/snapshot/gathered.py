"""The rows of a snapshot on their way into it: gathered by a thread while those before them are hashed and written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..align.align import AlignedSplit
from ..sources.rows import CHUNK_BYTES, rows_per_chunk
from ..sources.verdicts import judge

_PIECE_BYTES = 2 * CHUNK_BYTES
"""Of one hand-over between the threads."""


class UnsoundError(Exception):
    """A row that was taken for sound is of zeros, or not of finite numbers: the split is to be aligned again."""


def gathered_ahead(split: AlignedSplit) -> Iterator[npt.NDArray[np.float32]]:
    """The embeddings in order, as little-endian pieces (B, D).

    Raises DataError where the file of the rows has changed, UnsoundError.
    """
    rows = rows_per_chunk(split.dimension, _PIECE_BYTES)
    bounds = [(low, min(low + rows, len(split))) for low in range(0, len(split), rows)]
    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-gather") as thread:
        ahead = thread.submit(_gathered, split, *bounds[0])
        for following in [*bounds[1:], None]:
            piece = ahead.result()
            if following is not None:
                ahead = thread.submit(_gathered, split, *following)
            yield piece.astype("<f4", copy=False)
            del piece  # or its memory could not be that of the next but one


def _gathered(split: AlignedSplit, low: int, high: int) -> npt.NDArray[np.float32]:
    rows = split.gather(low, high)
    if split.again is not None:
        finite, zero = judge(rows)
        if zero.any() or not finite.all():
            raise UnsoundError
    return rows
