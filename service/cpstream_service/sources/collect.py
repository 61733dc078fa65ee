"""Rows as a source gives them, one by one or in blocks, made a split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import Reason, RowProblem, SourceSplit, path_problem

_BLOCK_BYTES = 64 << 20
"""Of what rows are kept in until all are there: more than malloc ever keeps to itself."""


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
        self._wheres: list[str] = []
        self._blocks: list[npt.NDArray[np.float32]] = []  # in the order of the rows
        self._open: npt.NDArray[np.float32] | None = None  # the next one, with room left
        self._used = self._kept = 0  # rows of that one; rows of all

    def add(self, where: str, file_path: object, embedding: Any, values: Mapping[str, Any] | None = None) -> None:
        """A row. where: of the source, for messages."""
        detail = path_problem(file_path)
        if detail is None:
            try:
                self.add_block([where], [str(file_path)], as_vector(embedding)[None], {k: [v] for k, v in (values or {}).items()})
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
        wheres: Sequence[str],
        file_paths: Sequence[str],
        embeddings: npt.NDArray[np.float32],
        values: Mapping[str, Sequence[Any]],
    ) -> None:
        """Rows that are sound. embeddings (B, D) float32, which are copied."""
        self._wheres.extend(wheres)
        self._file_paths.extend(file_paths)
        self._keep(embeddings)
        for name, column in self._columns.items():
            column.extend(values[name])

    def finish(self, *, bare_keys: bool = False) -> SourceSplit:
        """The split, with the rows of its most common dimension."""
        self._close()
        counts: Counter[int] = Counter()
        for block in self._blocks:
            counts[block.shape[1]] += len(block)
        usual = max(counts, key=lambda dimension: (counts[dimension], dimension), default=0)
        if len(counts) > 1:
            self._drop_others(usual)
        embeddings = self._joined(usual)
        return SourceSplit(self._name, self._file_paths, embeddings, self.problems, bare_keys=bare_keys, columns=self._columns)

    def _keep(self, rows: npt.NDArray[np.float32]) -> None:
        """Put rows into large blocks: what lies in small ones, or is Arrow's, is not given back when it is let go."""
        if self._open is None or rows.shape[1] != self._open.shape[1] or self._used + len(rows) > len(self._open):
            self._close()
            most = _BLOCK_BYTES // (4 * max(1, rows.shape[1]))
            self._open = np.empty((max(len(rows), min(most, self._kept)), rows.shape[1]), np.float32)
        self._open[self._used : self._used + len(rows)] = rows
        self._used += len(rows)
        self._kept += len(rows)

    def _close(self) -> None:
        if self._open is not None:
            used = self._open[: self._used]
            self._blocks.append(used if 2 * self._used >= len(self._open) else used.copy())
        self._open, self._used = None, 0

    def _joined(self, dimension: int) -> npt.NDArray[np.float32]:
        """All blocks as one, each let go once it is copied: they and their copy together would take twice the memory."""
        joined = np.empty((sum(map(len, self._blocks)), dimension), np.float32)
        self._blocks.reverse()
        low = 0
        while self._blocks:
            block = self._blocks.pop()
            joined[low : low + len(block)] = block
            low += len(block)
        return joined

    def _drop_others(self, usual: int) -> None:
        kept: list[bool] = []
        for block in self._blocks:
            fits = block.shape[1] == usual
            for i in range(len(kept), len(kept) + len(block)) if not fits else ():
                detail = f"the embedding has {block.shape[1]} numbers; most rows of {self._name!r} have {usual}"
                self.refuse(self._wheres[i], detail, self._file_paths[i], Reason.WRONG_DIMENSION)
            kept.extend([fits] * len(block))
        self._blocks = [block for block in self._blocks if block.shape[1] == usual]
        self._file_paths = list(compress(self._file_paths, kept))
        self._columns = {name: list(compress(column, kept)) for name, column in self._columns.items()}
