"""Rows as a source gives them, one by one or in blocks, made a split."""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import Reason, RowProblem, SourceSplit, path_problem

_STEP_BYTES = 64 << 20
"""By which the memory of many rows grows: what is more than malloc ever keeps to itself, so that the kernel moves the pages."""


def as_vector(value: Any) -> npt.NDArray[np.float32]:
    """An embedding (D,) float32 from an array or nested sequence with at most one axis longer than 1. Raises ValueError."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("the embedding is ragged; it must have one dimension") from None
    if array.size == 0:
        raise ValueError("the embedding is empty")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"the embedding is an array of {array.dtype}, not of numbers")
    if array.size != max(array.shape, default=0):
        raise ValueError(f"the embedding has shape {array.shape}; it must have one dimension")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array.reshape(-1), np.float32)


class Collector:
    """A split on its way. columns: the further values that each row has, by name."""

    def __init__(self, name: str, columns: Sequence[str] = ()) -> None:
        self.problems: list[RowProblem] = []
        self._name = name
        self._columns: dict[str, list[Any]] = {column: [] for column in columns}
        self._file_paths: list[str] = []
        self._runs: list[tuple[int, str, Sequence[int] | None]] = []  # of rows: dimension; where they are; numbers there
        self._rows: dict[int, _Rows] = {}  # by dimension

    def add(self, where: str, file_path: object, embedding: Any, values: Mapping[str, Any] | None = None) -> None:
        """A row. where: of the source, for messages."""
        detail = path_problem(file_path)
        if detail is None:
            try:
                self._add(where, None, [str(file_path)], as_vector(embedding)[None], {k: [v] for k, v in (values or {}).items()})
            except ValueError as error:
                detail = str(error)
        if detail is not None:
            self.refuse(where, detail, file_path)

    def refuse(self, where: str, detail: str, file_path: object = None, reason: Reason = Reason.UNREADABLE_ROW) -> None:
        """A row that cannot be used."""
        known = str(file_path) if path_problem(file_path) is None else None
        self.problems.append(RowProblem(reason, where, detail, known))

    def add_block(
        self,
        where: str,
        numbers: Sequence[int],
        file_paths: Sequence[str],
        embeddings: npt.NDArray[np.float32],
        values: Mapping[str, Sequence[Any]],
    ) -> None:
        """Rows that are sound. where, numbers: of the source, for messages, as "row" and 0 to B - 1.

        embeddings (B, D) float32, which are copied.
        """
        self._add(where, numbers, file_paths, embeddings, values)

    def finish(self, *, bare_keys: bool = False) -> SourceSplit:
        """The split, with the rows of its most common dimension."""
        usual = max(self._rows, key=lambda dimension: (len(self._rows[dimension]), dimension), default=0)
        if len(self._rows) > 1:
            self._drop_others(usual)
        embeddings = self._rows.pop(usual, _Rows(usual)).whole()
        return SourceSplit(self._name, self._file_paths, embeddings, self.problems, bare_keys=bare_keys, columns=self._columns)

    def _add(
        self,
        where: str,
        numbers: Sequence[int] | None,
        file_paths: Sequence[str],
        embeddings: npt.NDArray[np.float32],
        values: Mapping[str, Sequence[Any]],
    ) -> None:
        dimension = embeddings.shape[1]
        self._runs.append((dimension, where, numbers))
        self._file_paths.extend(file_paths)
        if dimension not in self._rows:
            self._rows[dimension] = _Rows(dimension)
        self._rows[dimension].extend(embeddings)
        for name, column in self._columns.items():
            column.extend(values[name])

    def _drop_others(self, usual: int) -> None:
        kept: list[bool] = []
        for dimension, where, numbers in self._runs:
            wheres = [where] if numbers is None else [f"{where} {number}" for number in numbers]
            for at, each in enumerate(wheres if dimension != usual else (), len(kept)):
                detail = f"the embedding has {dimension} numbers; most rows of {self._name!r} have {usual}"
                self.refuse(each, detail, self._file_paths[at], Reason.WRONG_DIMENSION)
            kept.extend([dimension == usual] * len(wheres))
        self._file_paths = list(compress(self._file_paths, kept))
        self._columns = {name: list(compress(column, kept)) for name, column in self._columns.items()}


class _Rows:
    """Rows (N, D) float32 as they come, in one array that grows: blocks would have to be joined, which takes twice the memory."""

    def __init__(self, dimension: int) -> None:
        self._array = np.empty((0, dimension), np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: npt.NDArray[np.float32]) -> None:
        count = self._count + len(rows)
        if count > len(self._array):
            more = min(len(self._array), _STEP_BYTES // (4 * max(1, rows.shape[1])))
            self._resize(max(count, len(self._array) + more))
        self._array[self._count : count] = rows
        self._count = count

    def whole(self) -> npt.NDArray[np.float32]:
        """All of them. (N, D) float32."""
        self._resize(self._count)
        return self._array

    def _resize(self, count: int) -> None:
        self._array.resize((count, self._array.shape[1]), refcheck=False)  # nobody else has it
