"""Where embeddings and CPS values come from: one module per source."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..reasons import Reason


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that the source could not use. where: "row 17"; file_path: if the row has a readable one."""

    reason: Reason
    where: str
    detail: str
    file_path: str | None = None

    def __str__(self) -> str:
        path = "" if self.file_path is None else f" ({self.file_path})"
        return f"{self.where}{path}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ByteRows:
    """Rows of float32 as the bytes that they were read as: an (M, D) array to be gathered from, not yet one block of memory."""

    rows: list[bytes]
    dimension: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.dimension

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int | slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Row `at` (D,), or the rows `at` (B, D), read-only."""
        if isinstance(at, slice):
            piece = self.rows[at]
        elif isinstance(at, np.ndarray):
            piece = list(map(self.rows.__getitem__, at.tolist()))
        else:
            return np.frombuffer(self.rows[at], np.float32)
        return np.frombuffer(b"".join(piece), np.float32).reshape(len(piece), self.dimension)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or np.float32)


Embeddings = npt.NDArray[np.float32] | ByteRows


@dataclass(frozen=True, slots=True)
class SourceSplit:
    """The embeddings of one split as a source holds them, in its order.

    embeddings (M, D) float32 and the M paths are the usable rows; problems are the others, D being the most common dimension.
    """

    name: str
    file_paths: list[str]
    embeddings: Embeddings
    problems: list[RowProblem] = field(default_factory=list)


def path_problem(value: object) -> str | None:
    """What keeps a value from being a file path, or None if it is one."""
    if not isinstance(value, str):
        return f"file_path is {type(value).__name__}, not a string"
    if not value.strip("./\\"):
        return f"file_path {value!r} names no file" if value else "file_path is empty"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "file_path is not valid Unicode (it holds a lone surrogate)"
    return None


def common_dimension(dimensions: Iterable[int]) -> int:
    """The dimension that most rows have, the larger one on a tie; 0 without rows."""
    counts = Counter(dimensions)
    return max(counts, key=lambda dimension: (counts[dimension], dimension), default=0)
