"""What the pickle of numpy_embs.npy holds, as splits of rows. Light to import: a process of its own reads it, see npy_apart.py.

Three shapes are read: a dict {split: rows}, the same in an array of one element, and a flat list of rows that name their split.
"""

import io
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from .npy_rows import NoRowsError, key_text, read_rows
from .npy_scan import LEAST_BYTES, scan
from .pickled import NotAllowedError, load_pickle
from .pickled_arrays import Array
from .rows import ALL, Reason, RowProblem, SourceSplit, kind_of, path_problem

LAYOUT = 'np.save(path, {split: [{"embedding": list or array, "file_path": str}, ...]})'
_UNFIT = "its parts do not fit together"


class UnreadableError(ValueError):
    """The file is no source. The message is what to say after the file's path."""


def read_content(
    raw: io.RawIOBase, splits: Sequence[str] = (), columns: Sequence[str] = (), *, progress: bool = False
) -> dict[str, SourceSplit]:
    """The splits asked for, or all, of a file that stands where its pickle begins. columns: further keys of the rows to keep.

    Executes nothing that the file says; yet a crafted one may take all memory or time there is, or end the process, which is
    therefore another one. Raises UnreadableError, MemoryError.
    """
    if not columns and os.fstat(raw.fileno()).st_size >= LEAST_BYTES and (found := scan(raw.fileno(), raw.tell(), _of_kept)):
        return {name: found[name] for name in _wanted(found, splits)}
    content = _load(raw)
    try:
        return _read(content, splits, columns, progress)
    except (UnreadableError, MemoryError):
        raise
    except NoRowsError as error:
        raise UnreadableError(f": {error}; write it with {LAYOUT}") from None
    except Exception:  # what a damaged pickle left may fail in any way, too
        raise _unfit() from None


def truncated(size: int) -> UnreadableError:
    return UnreadableError(f" is truncated: it ends after {size} bytes, within the data; copy or write it again")


def _unfit(fault: str = _UNFIT) -> UnreadableError:
    return UnreadableError(f": its pickle is damaged ({fault}); write it again: {LAYOUT}")


def _load(raw: io.RawIOBase) -> Array:
    """The array of objects that the file holds."""
    try:
        content = load_pickle(io.BufferedReader(raw))
    except MemoryError:
        raise
    except NotAllowedError as error:
        raise UnreadableError(
            f": its pickle names {error}, which embeddings do not need, so it was not run; save plain lists or "
            f"numpy arrays and str paths: {LAYOUT}"
        ) from None
    except Exception as error:  # a damaged pickle may fail in any way
        if isinstance(error, EOFError) or "truncated" in str(error) or "exhausted" in str(error):
            raise truncated(os.fstat(raw.fileno()).st_size) from None
        raise _unfit(" ".join(str(error).split()) if isinstance(error, pickle.UnpicklingError) else _UNFIT) from None
    if not isinstance(content, Array):
        raise _unfit(f"it holds {kind_of(content)} where the array of the .npy file belongs")
    return content


def _read(array: Array, splits: Sequence[str], columns: Sequence[str], progress: bool) -> dict[str, SourceSplit]:
    content, problems = _splits_of(array)
    names = _wanted(content, splits)
    for name in list(content):
        if name not in names:
            del content[name]
    found = {name: read_rows(name, content.pop(name), columns, progress) for name in names}
    found[names[0]].problems.extend(problems)
    return found


def _wanted(content: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    """The names of the splits asked for, or of all."""
    missing = [split for split in splits if split not in content]
    if missing:
        held = ", ".join(map(repr, content))
        raise UnreadableError(f" has no split {missing[0]!r}; it has: {held}; set --splits to some of those")
    return list(splits) or list(content)


def _of_kept(pickled: bytes) -> dict[str, Any] | None:
    """The rows of each split of a pickle whose rows are sound."""
    content, problems = _splits_of(load_pickle(io.BytesIO(pickled)))
    return None if problems else content


def _splits_of(array: Array) -> tuple[dict[str, Any], list[RowProblem]]:
    """The rows of each split, in whichever shape they were saved; and those of none.

    Rows of a flat list are all in the one split ALL where none names its own.
    """
    try:
        objects = array.objects()
    except ValueError:
        raise _unfit("its array holds no objects") from None
    content: Any = objects[0] if len(objects) == 1 else objects
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0]
    if _is_row(content):
        content = [content]
    if isinstance(content, (list, tuple)) and any(map(_is_row, content)):
        return _by_split(content)
    if len(objects) != 1:
        shape = array.state[1]
        raise UnreadableError(
            f" is an array of objects with shape {shape}, not one dict of splits, nor of rows; write it with {LAYOUT}"
        )
    if not isinstance(content, dict):
        raise UnreadableError(f" holds {kind_of(content)}, not a dict of splits; write it with {LAYOUT}")
    wrong = [name for name in content if path_problem(name) is not None]
    if wrong:
        raise UnreadableError(f": its key {key_text(wrong[0])} is not the name of a split; write it with {LAYOUT}")
    if not content:
        raise UnreadableError(f" holds an empty dict; write it with {LAYOUT}")
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
