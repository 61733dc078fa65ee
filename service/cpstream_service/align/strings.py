"""Texts as Arrow has them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def arrow_strings(texts: Sequence[str]) -> pa.StringArray:
    """Not by pa.array, which imports pandas where that is installed: two seconds. Raises OverflowError beyond 2 GB together."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    if len(ends) and ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError("the texts exceed 2 GB")
    offsets = np.concatenate([[0], ends]).astype("<i4")
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))
