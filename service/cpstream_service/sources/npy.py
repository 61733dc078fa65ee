"""Embeddings from numpy_embs.npy: np.save of {split: [{"embedding": list or array, "file_path": str}, ...]}.

The same dict in an array of one element is read, too, and a flat list of rows that each name their `split`.
"""

import io
import pickle
import struct
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter, itemgetter
from pathlib import Path
from string import whitespace
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError, MissingFileError
from .formats import HEAD_BYTES, check_npy, read_npy_header
from .pickled import NotAllowedError, load_pickle
from .pickled_arrays import Array
from .rows import ALL, ByteRows, Reason, RowProblem, SourceSplit, common_dimension, kind_of, path_problem

FILE_NAME = "numpy_embs.npy"
_MAX_AXES = 8
_IN_EMPTY_PATHS = frozenset("./\\" + whitespace)
_LAYOUT = 'np.save(path, {split: [{"embedding": list or array, "file_path": str}, ...]})'


def read_npy(
    path: Path, splits: Sequence[str] = (), columns: Sequence[str] = (), *, progress: bool = False
) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all of them. columns: further keys of the rows to keep. Executes nothing that the file says.

    Raises DataError when the file is missing, empty, truncated, hostile, or laid out otherwise, or lacks a split.
    """
    content, problems = _splits_of(path, _load(path, progress))
    missing = [split for split in splits if split not in content]
    if missing:
        held = ", ".join(map(repr, content))
        raise DataError(f"{path} has no split {missing[0]!r}; it has: {held}; set --splits to some of those")
    names = list(splits) or list(content)
    for name in list(content):
        if name not in names:
            del content[name]
    found = {name: _read_split(path, name, content.pop(name), columns, progress) for name in names}
    found[names[0]].problems.extend(problems)
    return found


def _load(path: Path, progress: bool) -> Array:
    """The array of objects that the file holds."""
    try:
        raw = _Counted(path, progress)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file; set --source-path to the folder that holds {FILE_NAME}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror or error}; check the path and its permissions") from None
    with raw, io.BufferedReader(raw) as file:
        check_npy(path, file.peek(HEAD_BYTES)[:HEAD_BYTES], _LAYOUT)
        _read_header(path, file)
        try:
            content = load_pickle(file)
        except NotAllowedError as error:
            raise DataError(
                f"{path}: its pickle names {error}, which embeddings do not need, so it was not run; save plain lists or "
                f"numpy arrays and str paths: {_LAYOUT}"
            ) from None
        except EOFError:
            raise _truncated(path) from None
        except Exception as error:  # a damaged pickle may fail in any way
            if "truncated" in str(error) or "exhausted" in str(error):
                raise _truncated(path) from None
            fault = str(error) if isinstance(error, pickle.UnpicklingError) else "its parts do not fit together"
            raise DataError(f"{path}: its pickle is damaged ({fault}); write it again: {_LAYOUT}") from None
    if not isinstance(content, Array):
        raise DataError(
            f"{path}: its pickle is damaged (it holds {kind_of(content)} where the array of the .npy file belongs); "
            f"write it again: {_LAYOUT}"
        )
    return content


def _splits_of(path: Path, array: Array) -> tuple[dict[str, Any], list[RowProblem]]:
    """The rows of each split, in whichever shape they were saved; and those of none.

    A dict {split: rows}; the same in an array of one element, as np.save(path, np.array([{...}])) writes it; or a flat list of rows
    that each name their split, all of them in the one split ALL where none does.
    """
    try:
        objects = array.objects()
    except ValueError:
        raise DataError(f"{path}: its pickle is damaged (its array holds no objects); write it again: {_LAYOUT}") from None
    content: Any = objects[0] if len(objects) == 1 else objects
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0]
    if _is_row(content):
        content = [content]
    if isinstance(content, (list, tuple)) and any(map(_is_row, content)):
        return _by_split(content)
    if len(objects) != 1:
        shape = array.state[1]
        raise DataError(
            f"{path} is an array of objects with shape {shape}, not one dict of splits, nor of rows; write it with {_LAYOUT}"
        )
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {kind_of(content)}, not a dict of splits; write it with {_LAYOUT}")
    wrong = [name for name in content if path_problem(name) is not None]
    if wrong:
        raise DataError(f"{path}: its key {_key(wrong[0])} is not the name of a split; write it with {_LAYOUT}")
    if not content:
        raise DataError(f"{path} holds an empty dict; write it with {_LAYOUT}")
    return content, []


def _key(key: object) -> str:
    """A key for a message. Only the text of plain values: a tuple may be nested deeper than repr goes."""
    return repr(key) if isinstance(key, (str, bytes, int, float)) else f"({kind_of(key)})"


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and "embedding" in value and not isinstance(value["embedding"], dict) and "file_path" in value


def _by_split(rows: Sequence[Any]) -> tuple[dict[str, Any], list[RowProblem]]:
    """A flat list of rows, by their key `split`; and the rows that have none, where others do."""
    names = [row.get("split") if isinstance(row, dict) else None for row in rows]
    if names.count(None) == len(names):
        return {ALL: list(rows)}, []
    splits: dict[str, Any] = {}
    problems = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        if isinstance(name, str) and path_problem(name) is None:
            splits.setdefault(name, []).append(row)
            continue
        file_path = row.get("file_path") if isinstance(row, dict) else None
        detail = "it names no split" if name is None else f"its split is {_key(name)}, not the name of one"
        problems.append(RowProblem(Reason.NO_SPLIT, f"row {i}", detail, file_path if path_problem(file_path) is None else None))
    return splits, problems


def _read_header(path: Path, file: IO[bytes]) -> None:
    """Read as far as the pickle; DataError if there is none."""
    try:
        shape, dtype = read_npy_header(file)
    except EOFError:
        raise _truncated(path) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; write it again: {_LAYOUT}") from None
    if dtype != np.dtype(object):
        raise DataError(f"{path} is a plain array of {dtype} with shape {shape}, without file paths; write it with {_LAYOUT}")


def _truncated(path: Path) -> DataError:
    return DataError(f"{path} is truncated: it ends after {path.stat().st_size} bytes, within the data; copy or write it again")


# Rows


def _read_split(path: Path, name: str, rows: Any, columns: Sequence[str], progress: bool) -> SourceSplit:
    """The usable rows of a split. Empties `rows`, so that the file's objects and the result are not both held."""
    with suppress(ValueError):
        rows = rows.objects() if isinstance(rows, Array) else list(rows) if isinstance(rows, tuple) else rows
    if not isinstance(rows, list):
        raise DataError(f"{path}: split {name!r} holds {kind_of(rows)}, not a list of rows; write it with {_LAYOUT}")
    return _uniform(name, rows, columns) or _any_rows(name, rows, columns, progress)


def _uniform(name: str, rows: list[Any], columns: Sequence[str]) -> SourceSplit | None:
    """The split if all its rows are sound vectors of float32 and of one dimension: without a Python loop, and without a copy."""
    try:
        file_paths = list(map(itemgetter("file_path"), rows))
        vectors = list(map(itemgetter("embedding"), rows))
        data = list(map(attrgetter("data"), vectors))
        dimensions = set(map(attrgetter("length"), vectors))
        usual = set(map(type, file_paths)) == {str} and all(map(str.isascii, file_paths))
        if not (usual and _IN_EMPTY_PATHS.isdisjoint(map(itemgetter(-1), file_paths))) and any(map(path_problem, file_paths)):
            return None
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    if len(dimensions) != 1 or dimensions == {0}:
        return None
    values = {column: [row.get(column) for row in rows] for column in columns}
    rows.clear()
    return SourceSplit(name, file_paths, ByteRows(data, dimensions.pop()), columns=values)


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
                values.append([row.get(column) for column in columns])
                continue
            except Exception as error:  # an array is whatever the pickle says
                detail = str(error)
        problems.append(
            RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail, file_path if path_problem(file_path) is None else None)
        )
    del rows[:]

    put = _Putter(name, len(vectors), common_dimension(map(len, vectors)))
    kept: list[int] = []
    for i in tqdm(range(len(vectors)), f"{name}: to float32", disable=None if progress else True, delay=2, unit=" rows"):
        vector, vectors[i] = vectors[i], None
        problem = put(vector)
        if problem is None:
            kept.append(i)
        else:
            problems.append(RowProblem(problem[0], f"row {where[i]}", problem[1], file_paths[i]))
    of_kept = {column: [values[i][j] for i in kept] for j, column in enumerate(columns)}
    return SourceSplit(name, [file_paths[i] for i in kept], put.out[: len(kept)], problems, columns=of_kept)


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
        except Exception as error:  # what stands in a list, the pickle decides
            return Reason.UNREADABLE_ROW, f"the embedding is not {dimension} numbers ({error})"
        self._count += 1
        return None


def _no_row(i: int, row: object) -> RowProblem:
    if not isinstance(row, dict):
        return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", f"it is {kind_of(row)}, not a dict")
    missing = next(key for key in ("embedding", "file_path") if key not in row)
    file_path = row.get("file_path")
    detail = f"it has no key {missing!r}; its keys: {', '.join(map(_key, row)) or 'none'}"
    return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail, file_path if path_problem(file_path) is None else None)


class _Counted(io.FileIO):
    """A file whose reading a progress bar shows."""

    def __init__(self, path: Path, progress: bool) -> None:
        self._bar = tqdm(None, path.name, unit="B", unit_scale=True, disable=None if progress else True, delay=2)
        super().__init__(path)
        self._bar.total = path.stat().st_size

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._bar.update(count)
        return count

    def close(self) -> None:
        self._bar.close()
        super().close()
