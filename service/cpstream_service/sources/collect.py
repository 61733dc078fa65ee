"""Rows as a source gives them, one by one or in blocks, made a split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import Reason, RowProblem, SourceSplit, path_problem


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
        self._blocks: list[npt.NDArray[np.float32]] = []

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
        """Rows that are sound. embeddings (B, D) float32."""
        self._wheres.extend(wheres)
        self._file_paths.extend(file_paths)
        self._blocks.append(embeddings)
        for name, column in self._columns.items():
            column.extend(values[name])

    def finish(self, *, bare_keys: bool = False) -> SourceSplit:
        """The split, with the rows of its most common dimension."""
        counts: Counter[int] = Counter()
        for block in self._blocks:
            counts[block.shape[1]] += len(block)
        usual = max(counts, key=lambda dimension: (counts[dimension], dimension), default=0)
        if len(counts) > 1:
            self._drop_others(usual)
        embeddings = self._joined(usual)
        return SourceSplit(self._name, self._file_paths, embeddings, self.problems, bare_keys=bare_keys, columns=self._columns)

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
