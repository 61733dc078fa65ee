"""Embeddings from numpy_embs.npy: np.save of {split: [{"embedding": list or array, "file_path": str}, ...]}.

The same dict in an array of one element is read, too, and a flat list of rows that each name their `split`.
"""

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from .formats import HEAD_BYTES, check_npy, read_npy_header
from .npy_rows import NoRowsError, key_text, read_rows
from .pickled import NotAllowedError, load_pickle
from .pickled_arrays import Array
from .regular import descriptor_of
from .rows import ALL, Reason, RowProblem, SourceSplit, kind_of, path_problem

FILE_NAME = "numpy_embs.npy"
_UNFIT = "its parts do not fit together"
_LAYOUT = 'np.save(path, {split: [{"embedding": list or array, "file_path": str}, ...]})'


def read_npy(
    path: Path, splits: Sequence[str] = (), columns: Sequence[str] = (), *, progress: bool = False
) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all of them. columns: further keys of the rows to keep. Executes nothing that the file says.

    Raises DataError when the file is missing, empty, truncated, hostile, or laid out otherwise, or lacks a split.
    """
    content = _load(path, progress)
    try:
        return _read(path, content, splits, columns, progress)
    except DataError:
        raise
    except NoRowsError as error:
        raise DataError(f"{path}: {error}; write it with {_LAYOUT}") from None
    except Exception:  # what a damaged pickle left may fail in any way, too
        raise _unfit(path) from None


def _read(path: Path, array: Array, splits: Sequence[str], columns: Sequence[str], progress: bool) -> dict[str, SourceSplit]:
    content, problems = _splits_of(path, array)
    missing = [split for split in splits if split not in content]
    if missing:
        held = ", ".join(map(repr, content))
        raise DataError(f"{path} has no split {missing[0]!r}; it has: {held}; set --splits to some of those")
    names = list(splits) or list(content)
    for name in list(content):
        if name not in names:
            del content[name]
    found = {name: read_rows(name, content.pop(name), columns, progress) for name in names}
    found[names[0]].problems.extend(problems)
    return found


def _load(path: Path, progress: bool) -> Array:
    """The array of objects that the file holds."""
    raw = _Counted(path, progress)
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
            raise _unfit(path, str(error) if isinstance(error, pickle.UnpicklingError) else _UNFIT) from None
    if not isinstance(content, Array):
        raise _unfit(path, f"it holds {kind_of(content)} where the array of the .npy file belongs")
    return content


def _splits_of(path: Path, array: Array) -> tuple[dict[str, Any], list[RowProblem]]:
    """The rows of each split, in whichever shape they were saved; and those of none.

    A dict {split: rows}; the same in an array of one element, as np.save(path, np.array([{...}])) writes it; or a flat list of rows
    that each name their split, all of them in the one split ALL where none does.
    """
    try:
        objects = array.objects()
    except ValueError:
        raise _unfit(path, "its array holds no objects") from None
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
        raise DataError(f"{path}: its key {key_text(wrong[0])} is not the name of a split; write it with {_LAYOUT}")
    if not content:
        raise DataError(f"{path} holds an empty dict; write it with {_LAYOUT}")
    return content, []


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
        detail = "it names no split" if name is None else f"its split is {key_text(name)}, not the name of one"
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


def _unfit(path: Path, fault: str = _UNFIT) -> DataError:
    return DataError(f"{path}: its pickle is damaged ({fault}); write it again: {_LAYOUT}")


def _truncated(path: Path) -> DataError:
    return DataError(f"{path} is truncated: it ends after {path.stat().st_size} bytes, within the data; copy or write it again")


class _Counted(io.FileIO):
    """A file whose reading a progress bar shows."""

    def __init__(self, path: Path, progress: bool) -> None:
        self._bar = tqdm(None, path.name, unit="B", unit_scale=True, disable=None if progress else True, delay=2)
        super().__init__(descriptor_of(path, f"the folder that holds {FILE_NAME}"))
        self._bar.total = os.fstat(self.fileno()).st_size

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._bar.update(count)
        return count

    def close(self) -> None:
        self._bar.close()
        super().close()
