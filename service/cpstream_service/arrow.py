"""Arrays as Arrow has them, made of their bytes.

pa.array, pa.scalar, pa.table, to_numpy and what takes numpy's arrays or Python's values import pandas at their first call, where
that is installed: up to two seconds of the interpreter, for which every stream of the process waits.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

T = TypeVar("T", bound=np.generic)


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """(N,) of a number type, without a copy if it is contiguous."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def values(array: pa.Array, dtype: type[T]) -> npt.NDArray[T]:
    """The numbers of an array, (N,) of the dtype that it has, without a copy. What is null is some number."""
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def strings(texts: Sequence[str]) -> pa.StringArray:
    """Raises OverflowError beyond 2 GB together."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    if len(ends) and ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError("the texts exceed 2 GB")
    offsets = np.concatenate([[0], ends]).astype("<i4")
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def string(text: str) -> pa.StringScalar:
    """To compare others with."""
    return strings([text])[0]
