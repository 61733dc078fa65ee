"""The rows of one split of numpy_embs.npy, from what its pickle held to float32."""

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import attrgetter, itemgetter
from string import whitespace
from typing import Any

import numpy as np

from .pickled_arrays import Array
from .rows import ByteRows, Reason, RowProblem, SourceSplit, common_dimension, kind_of, path_problem

_MAX_AXES = 8
_IN_EMPTY_PATHS = frozenset("./\\" + whitespace)


class NoRowsError(ValueError):
    """A split is no list of rows. The message says what it is."""


def read_rows(name: str, rows: Any, columns: Sequence[str], progress: bool) -> SourceSplit:
    """The usable rows of a split. Empties `rows`, so that the file's objects and the result are not both held."""
    with suppress(ValueError):
        rows = rows.objects() if isinstance(rows, Array) else list(rows) if isinstance(rows, tuple) else rows
    if not isinstance(rows, list):
        raise NoRowsError(f"split {name!r} holds {kind_of(rows)}, not a list of rows")
    return _uniform(name, rows, columns) or _any_rows(name, rows, columns, progress)


def _uniform(name: str, rows: list[Any], columns: Sequence[str]) -> SourceSplit | None:
    """The split if all its rows are sound vectors of float32 and of one dimension: without a Python loop, and without a copy."""
    try:
        file_paths = list(map(itemgetter("file_path"), rows))
        vectors = list(map(itemgetter("embedding"), rows))
        data = list(map(attrgetter("data"), vectors))
        dimensions = set(map(attrgetter("length"), vectors))
        if has_path_problems(file_paths):
            return None
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    if len(dimensions) != 1 or dimensions == {0}:
        return None
    values = {column: [row.get(column) for row in rows] for column in columns}
    rows.clear()
    return SourceSplit(name, file_paths, ByteRows(data, dimensions.pop()), columns=values)


def has_path_problems(file_paths: list[Any]) -> bool:
    """Whether any of them is no path. Raises IndexError where one is empty."""
    usual = set(map(type, file_paths)) == {str} and all(map(str.isascii, file_paths))
    return not (usual and _IN_EMPTY_PATHS.isdisjoint(map(itemgetter(-1), file_paths))) and any(map(path_problem, file_paths))


def _any_rows(name: str, rows: list[Any], columns: Sequence[str], progress: bool) -> SourceSplit:
    """The split row by row, each looked at by itself."""
    file_paths: list[str] = []
    vectors: list[Any] = []
    where: list[int] = []
    values: list[list[Any]] = []
    problems: list[RowProblem] = []
    for i, row in enumerate(rows):
        rows[i] = None
        try:
            file_path, vector = row["file_path"], row["embedding"]
        except (TypeError, KeyError, IndexError):
            problems.append(_no_row(i, row))
            continue
        detail = path_problem(file_path)
        if detail is None:
            try:
                vectors.append(_numbers(vector))
                file_paths.append(file_path)
                where.append(i)
                if columns:  # else 40,000 empty lists among the numbers would keep their memory from being given back
                    values.append([row.get(column) for column in columns])
                continue
            except ValueError as error:
                detail = str(error)
            except MemoryError:
                raise
            except Exception:  # an array is whatever the pickle says
                detail = "the embedding is a damaged array"
        problems.append(
            RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail, file_path if path_problem(file_path) is None else None)
        )
    del rows[:]

    put = _Putter(name, len(vectors), common_dimension(map(len, vectors)))
    kept: list[int] = []
    for i in _shown(len(vectors), f"{name}: to float32", progress):
        vector, vectors[i] = vectors[i], None
        problem = put(vector)
        if problem is None:
            kept.append(i)
        else:
            problems.append(RowProblem(problem[0], f"row {where[i]}", problem[1], file_paths[i]))
    of_kept = {column: [values[i][j] for i in kept] for j, column in enumerate(columns)}
    return SourceSplit(name, [file_paths[i] for i in kept], put.out[: len(kept)], problems, columns=of_kept)


def _shown(count: int, what: str, progress: bool) -> Iterable[int]:
    """The numbers from 0, behind a progress bar where one is wanted: only then is it imported."""
    if not progress:
        return range(count)
    from tqdm import tqdm

    shown: Iterable[int] = tqdm(range(count), what, disable=None, delay=2, unit=" rows")
    return shown


def _numbers(vector: Any) -> Any:
    """An embedding as an array, list or tuple, without singleton axes; ValueError if it is none."""
    for _ in range(_MAX_AXES):  # a list in a pickle may hold itself
        if not (isinstance(vector, (list, tuple)) and len(vector) == 1 and isinstance(vector[0], (list, tuple, Array))):
            break
        vector = vector[0]
    if isinstance(vector, Array):
        return vector.vector()
    if not isinstance(vector, (list, tuple)):
        raise ValueError(f"the embedding is {kind_of(vector)}, not numbers")
    return vector


class _Putter:
    """Writes vectors into the rows of `out`, one after another. Returns a problem instead of raising."""

    def __init__(self, split: str, count: int, dimension: int) -> None:
        self.out = np.empty((count, dimension), np.float32)
        self._split, self._dimension, self._count = split, dimension, 0
        self._memory = self.out.reshape(-1).view(np.uint8).data
        self._pack_into = struct.Struct(f"{dimension}f").pack_into  # 2 to 4 times faster than numpy on a list

    def __call__(self, vector: Any) -> tuple[Reason, str] | None:
        dimension = self._dimension
        if len(vector) != dimension:
            detail = f"the embedding has {len(vector)} numbers; most rows of {self._split!r} have {dimension}"
            return Reason.WRONG_DIMENSION, detail
        if not dimension:
            return Reason.UNREADABLE_ROW, "the embedding is empty"
        try:
            if isinstance(vector, np.ndarray):
                with np.errstate(over="ignore"):
                    self.out[self._count] = vector
            else:
                self._pack_into(self._memory, self._count * dimension * 4, *vector)
        except MemoryError:
            raise
        except Exception as error:  # what stands in a list, the pickle decides
            return Reason.UNREADABLE_ROW, f"the embedding is not {dimension} numbers ({error})"
        self._count += 1
        return None


def _no_row(i: int, row: object) -> RowProblem:
    if not isinstance(row, dict):
        return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", f"it is {kind_of(row)}, not a dict")
    missing = next(key for key in ("embedding", "file_path") if key not in row)
    file_path = row.get("file_path")
    detail = f"it has no key {missing!r}; its keys: {', '.join(map(key_text, row)) or 'none'}"
    return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail, file_path if path_problem(file_path) is None else None)


def key_text(key: object) -> str:
    """A key for a message. Only the text of plain values: a tuple may be nested deeper than repr goes."""
    return repr(key) if isinstance(key, (str, bytes, int, float)) else f"({kind_of(key)})"
