"""Rows of float32 that stay where they lie in a file, and are read when they are asked for."""

import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

_SPAN_BYTES = 4 << 20


Stamp = tuple[int, int]
"""Size of a file, and when it was last written to."""


def stamp_of(descriptor: int) -> Stamp:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class FileRows:
    """An (M, D) array whose row i is the little-endian float32 from offsets[i] on, in the file of that name.

    Takes over the descriptor. Read, not mapped: a file that is cut while it is mapped ends the process. Here, one that was cut, or
    is no longer as its stamp says, raises DataError.
    """

    def __init__(self, descriptor: int, offsets: npt.NDArray[np.int64], dimension: int, name: str, stamp: Stamp) -> None:
        self.offsets, self.dimension, self._name, self._stamp = offsets, dimension, name, stamp
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.offsets), self.dimension

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, at: int | slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Row `at` (D,), or the rows `at` (B, D)."""
        if not isinstance(at, (slice, np.ndarray)):
            row: npt.NDArray[np.float32] = self._rows(self.offsets[[at]])[0]
            return row
        offsets = self.offsets[at]
        step = max(1, _SPAN_BYTES // (4 * max(1, self.dimension)))
        if len(offsets) <= step:
            return self._rows(offsets)
        out = np.empty((len(offsets), self.dimension), np.float32)
        for low in range(0, len(offsets), step):
            out[low : low + step] = self._rows(offsets[low : low + step])
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or np.float32)

    def _rows(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, D) float32, in one read where they lie close together, as rows do that are read in the file's order."""
        width, count = 4 * self.dimension, len(offsets)
        first, last = (int(offsets.min()), int(offsets.max())) if count else (0, 0)
        if last + width - first <= 2 * count * width + 4096:
            span = np.empty(last + width - first, np.uint8)
            self._read(span.data, first)
            found = as_strided(span, (len(span) - width + 1, width), (1, 1))[offsets - first]
        else:
            found = np.empty((count, width), np.uint8)
            for row, offset in zip(found, offsets.tolist(), strict=True):
                self._read(row.data, offset)
        if stamp_of(self._descriptor) != self._stamp:
            raise self._changed()
        rows: npt.NDArray[np.float32] = found.view("<f4").astype(np.float32, copy=False)
        return rows

    def _read(self, into: memoryview, offset: int) -> None:
        while len(into):
            count = os.preadv(self._descriptor, [into], offset)
            if not count:
                raise self._changed()
            into, offset = into[count:], offset + count

    def _changed(self) -> Exception:
        from ..errors import DataError  # not at import: it takes as long as all that the reading process needs

        return DataError(f"{self._name} changed while it was read; start again when it is complete")
