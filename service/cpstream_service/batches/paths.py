"""The paths of samples, as Arrow has them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute  # or the first `take` of paths imports it, and everybody waits

from cpstream_client.contract.plan import Indices

from ..arrow import numbers


def paths_at(file_paths: pa.StringArray, indices: Indices) -> pa.StringArray:
    """The paths of these samples, in that order. indices (B,) int64."""
    return file_paths.take(numbers(indices))


def paths_of(file_paths: pa.StringArray, batches: Sequence[Indices]) -> Iterator[tuple[memoryview, memoryview]]:
    """The paths of each batch, as Arrow has them: offsets (B + 1,) int32, from 0 on, and the text; both as bytes."""
    if not any(map(len, batches)):
        yield from ((memoryview(bytes(4)), memoryview(b"")) for _ in batches)
        return
    _, buffer, text = paths_at(file_paths, np.concatenate(batches)).buffers()
    ends, data = np.frombuffer(buffer, np.int32), memoryview(b"" if text is None else text).cast("B")
    sizes = np.array([len(indices) for indices in batches])
    last = np.cumsum(sizes)
    first = last - sizes  # of each batch, in ends
    # All batches' offsets at once, each batch's behind that of the one before: of B rows there are B + 1.
    offsets = ends[np.arange(last[-1] + len(sizes)) - np.repeat(np.arange(len(sizes)), sizes + 1)] - np.repeat(
        ends[first], sizes + 1
    )
    places = memoryview(offsets.astype(np.int32, copy=False)).cast("B")
    at = 0
    for size, low, high in zip(sizes.tolist(), ends[first].tolist(), ends[last].tolist(), strict=True):
        yield places[at : at + 4 * (size + 1)], data[low:high]
        at += 4 * (size + 1)
