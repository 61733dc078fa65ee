"""The rows of a snapshot on their way into it: gathered by a thread while those before them are hashed and written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..align.align import AlignedSplit
from ..sources.rows import CHUNK_BYTES, rows_per_chunk

_PIECE_BYTES = 2 * CHUNK_BYTES
"""Of one hand-over between the threads."""


def gathered_ahead(split: AlignedSplit) -> Iterator[npt.NDArray[np.float32]]:
    """The embeddings in order, as little-endian pieces (B, D). Raises DataError where the file of the rows has changed."""
    rows = rows_per_chunk(split.dimension, _PIECE_BYTES)
    bounds = [(low, min(low + rows, len(split))) for low in range(0, len(split), rows)]
    with ThreadPoolExecutor(1, thread_name_prefix="snapshot-gather") as thread:
        ahead = thread.submit(split.gather, *bounds[0])
        for following in [*bounds[1:], None]:
            piece = ahead.result()
            if following is not None:
                ahead = thread.submit(split.gather, *following)
            yield piece.astype("<f4", copy=False)
            del piece  # or its memory could not be that of the next but one
