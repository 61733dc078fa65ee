"""Embeddings from numpy_embs.npy: np.save of {split: [{"embedding": list or array, "file_path": str}, ...]}.

Such a file is a pickle, and a pickle is a program. This one is run by the standard unpickler with an allow-list that holds nothing
but the classes below: data without behaviour. Handing it numpy's own constructors, as allow-lists for numpy usually do, is not
enough: a crafted dtype state makes numpy take bytes of the file for object pointers.
"""

import gc
import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..errors import DataError
from ..reasons import Reason
from . import RowProblem, SourceSplit, common_dimension, path_problem

FILE_NAME = "numpy_embs.npy"
_LAYOUT = 'np.save(path, {split: [{"embedding": list or array, "file_path": str}, ...]})'


# What the unpickler may build. Each class has __setstate__, so that a pickle cannot write into the class itself.


class _Name:
    """Stands for a class that a pickle names without calling it: numpy.ndarray, or the factory of a defaultdict."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name has no state")


class _Dtype:
    """numpy.dtype(code, align, copy), then its state, of which only the byte order counts."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return _plain_dtype(self.code, self.order)


class _Array:
    """An array as pickled: its state is (version, shape, _Dtype, is_fortran, bytes, or a list of objects)."""

    __slots__ = ("state",)

    def __init__(self, subtype: object, shape: object, code: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def vector(self) -> npt.NDArray[Any]:
        """The numbers of a one-dimensional array; ValueError if it is anything else."""
        _, shape, dtype, _, data = self.state
        if len(shape) != 1:
            raise ValueError(f"the embedding has shape {tuple(shape)}; it must have one dimension")
        if isinstance(data, list):
            return np.array([float(value) for value in data], np.float32)
        vector = np.frombuffer(data, dtype.dtype)
        if vector.dtype.kind not in "fiu" or vector.shape != tuple(shape):
            raise ValueError(f"the embedding is an array of {vector.dtype}, not of numbers")
        return vector

    def objects(self) -> list[Any]:
        """The elements of an array of objects, flat; ValueError if it is an array of anything else."""
        _, shape, dtype, _, data = self.state
        if dtype.code not in ("O8", "O4", "O") or not isinstance(data, list) or len(data) != prod(shape):
            raise ValueError("not an array of objects")
        return data


class _Scalar:
    """numpy scalar(dtype, bytes), made a plain Python number or string at once."""

    __slots__ = ()

    def __new__(cls, dtype: _Dtype, data: bytes) -> Any:
        return _unpack(dtype.code, dtype.order)(data)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a numpy scalar has no state")


class _FromBuffer:
    """numpy._core.numeric._frombuffer(bytes, dtype, shape, order), as pickle protocol 5 writes arrays."""

    __slots__ = ()

    def __new__(cls, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Any:
        array = _Array(None, None, None)
        array.state = (1, shape, dtype, order == "F", data)
        return array

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a buffer has no state")


class _Dict:
    """A defaultdict or OrderedDict, read as a dict."""

    __slots__ = ()

    def __new__(cls, *args: object) -> Any:
        return {}

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a dict has no state")


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Name,
    ("collections", "defaultdict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "list"): _Name,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # numpy 1, numpy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _FromBuffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _NotAllowed(f"{module}.{name}") from None


class _NotAllowed(pickle.UnpicklingError):
    pass


@lru_cache(maxsize=64)
def _plain_dtype(code: str, order: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or order not in ("<", ">", "=", "|"):
        raise ValueError(f"unknown dtype {code!r}, {order!r}")
    dtype = np.dtype(code)
    if dtype.kind not in "fiubUS" or dtype.fields is not None:
        raise ValueError(f"dtype {code!r} is not numeric")
    return dtype.newbyteorder(order)


@lru_cache(maxsize=64)
def _unpack(code: str, order: str) -> Any:
    dtype = _plain_dtype(code, order)
    if dtype.kind in "fiub" and dtype.itemsize <= 8:
        unpack_from = struct.Struct(("=" if order == "|" else order) + dtype.char.replace("l", "q").replace("L", "Q")).unpack
        return lambda data: unpack_from(data)[0]
    return lambda data: np.frombuffer(data, dtype, 1).item()


# Reading


def read_npy(path: Path, splits: Sequence[str] = (), *, progress: bool = False) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all of them. Executes nothing that the file says.

    Raises DataError when the file is missing, empty, truncated, hostile, or laid out otherwise, or lacks a split.
    """
    content = _load(path, progress)
    missing = [split for split in splits if split not in content]
    if missing:
        held = ", ".join(map(repr, content))
        raise DataError(f"{path} has no split {missing[0]!r}; it has: {held}; set --splits to some of those")
    names = list(splits) or list(content)
    for name in list(content):
        if name not in names:
            del content[name]
    return {name: _read_split(path, name, content.pop(name), progress) for name in names}


def _load(path: Path, progress: bool) -> dict[str, Any]:
    """The dict that the file holds, arrays as _Array."""
    try:
        raw = _Counted(path, progress)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; set --source-path to the folder that holds {FILE_NAME}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror or error}; check the path and its permissions") from None
    with raw, io.BufferedReader(raw, 1 << 20) as file:
        _read_header(path, file)
        try:
            with _gc_paused():
                value = _Unpickler(file).load()
            content = value.objects()[0]
        except _NotAllowed as error:
            raise DataError(
                f"{path}: its pickle names {error}, which embeddings do not need, so it was not run; save plain lists or "
                f"numpy arrays and str paths: {_LAYOUT}"
            ) from None
        except EOFError:
            raise _truncated(path) from None
        except Exception as error:  # a damaged pickle may fail in any way
            if "truncated" in str(error) or "ran out of" in str(error):
                raise _truncated(path) from None
            raise DataError(f"{path}: its pickle is damaged ({error}); write it again: {_LAYOUT}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {_kind(content)}, not a dict of splits; write it with {_LAYOUT}")
    wrong = [name for name in content if not isinstance(name, str) or not name or path_problem(name)]
    if wrong:
        raise DataError(f"{path}: its key {wrong[0]!r} is not the name of a split; write it with {_LAYOUT}")
    if not content:
        raise DataError(f"{path} holds an empty dict; write it with {_LAYOUT}")
    return content


def _read_header(path: Path, file: IO[bytes]) -> None:
    """Read as far as the pickle; DataError if there is none."""
    start = file.read(6)
    if not start:
        raise DataError(f"{path} is empty; write it with {_LAYOUT}")
    if start[:2] == b"PK":
        raise DataError(f"{path} is an archive as np.savez writes it, not an .npy file; write it with {_LAYOUT}")
    if start[:1] == b"\x80":
        raise DataError(f"{path} is a bare pickle, not an .npy file; write it with {_LAYOUT}")
    if start != np.lib.format.MAGIC_PREFIX:
        if np.lib.format.MAGIC_PREFIX.startswith(start):
            raise _truncated(path)
        raise DataError(f"{path} is not an .npy file (it starts with {start!r}); write it with {_LAYOUT}")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except ValueError as error:
        if "EOF" in str(error):
            raise _truncated(path) from None
        raise DataError(f"{path}: its .npy header is damaged ({error}); write it again: {_LAYOUT}") from None
    if dtype != np.dtype(object):
        raise DataError(f"{path} is a plain array of {dtype} with shape {shape}, without file paths; write it with {_LAYOUT}")
    if shape != ():
        raise DataError(f"{path} is an array of objects with shape {shape}, not one dict; write it with {_LAYOUT}")


def _truncated(path: Path) -> DataError:
    return DataError(f"{path} is truncated: it ends after {path.stat().st_size} bytes, within the data; copy or write it again")


def _read_split(path: Path, name: str, rows: Any, progress: bool) -> SourceSplit:
    """Usable rows to float32. Empties `rows` on the way, so that the file's objects and the result are not held both."""
    if isinstance(rows, _Array):
        try:
            rows = rows.objects()
        except ValueError:
            raise _not_rows(path, name, rows) from None
    if isinstance(rows, tuple):
        rows = list(rows)
    if not isinstance(rows, list):
        raise _not_rows(path, name, rows)
    file_paths: list[str] = []
    vectors: list[Any] = []
    where: list[int] = []
    problems: list[RowProblem] = []
    dimensions: list[int] = []
    for i, row in enumerate(rows):
        rows[i] = None
        try:
            file_path, vector = row["file_path"], row["embedding"]
        except (TypeError, KeyError, IndexError) as error:
            problems.append(_unreadable_row(i, row, error))
            continue
        detail = path_problem(file_path)
        if detail is not None:
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail))
            continue
        kind = type(vector)
        if kind is _Array:
            try:
                shape = vector.state[1]
                dimension = shape[0] if len(shape) == 1 and vector.state[2].code == "f4" else len(vector.vector())
            except Exception as error:  # the state is whatever the pickle says
                problems.append(RowProblem(Reason.UNREADABLE_ROW, f"row {i}", str(error), file_path))
                continue
        elif kind is list or kind is tuple:
            dimension = len(vector)
        else:
            detail = f"the embedding is {_kind(vector)}, not numbers"
            problems.append(RowProblem(Reason.UNREADABLE_ROW, f"row {i}", detail, file_path))
            continue
        file_paths.append(file_path)
        vectors.append(vector)
        where.append(i)
        dimensions.append(dimension)
    rows.clear()
    dimension = common_dimension(dimensions)
    usable = _Rows(file_paths, vectors, where, dimensions, problems)
    return usable.to_split(name, dimension, progress)


class _Rows:
    """Rows of one split on their way to one array."""

    def __init__(
        self, file_paths: list[str], vectors: list[Any], where: list[int], dimensions: list[int], problems: list[RowProblem]
    ) -> None:
        self.file_paths, self.vectors, self.where = file_paths, vectors, where
        self.dimensions, self.problems = dimensions, problems

    def to_split(self, name: str, dimension: int, progress: bool) -> SourceSplit:
        out = np.empty((len(self.vectors), dimension), np.float32)
        flat = out.reshape(-1).view(np.uint8).data
        row_bytes = 4 * dimension
        pack_into = struct.Struct(f"{dimension}f").pack_into
        kept: list[str] = []
        at = 0
        vectors = self.vectors
        bar = tqdm(range(len(vectors)), f"{name}: to float32", disable=None if progress else True, delay=2, unit=" rows")
        for i in bar:
            vector, vectors[i] = vectors[i], None
            if self.dimensions[i] != dimension or not dimension:
                detail = f"the embedding has {self.dimensions[i]} numbers; most rows of {name!r} have {dimension}"
                reason = Reason.WRONG_DIMENSION if dimension else Reason.UNREADABLE_ROW
                self.problems.append(RowProblem(reason, f"row {self.where[i]}", detail, self.file_paths[i]))
                continue
            try:
                if type(vector) is not _Array:
                    pack_into(flat, at, *vector)
                elif vector.state[2].code == "f4" and vector.state[2].order in ("<", "=") and type(vector.state[4]) is bytes:
                    flat[at : at + row_bytes] = vector.state[4]
                else:
                    out[len(kept)] = vector.vector()
            except Exception as error:
                detail = f"the embedding is not {dimension} numbers ({error})"
                self.problems.append(RowProblem(Reason.UNREADABLE_ROW, f"row {self.where[i]}", detail, self.file_paths[i]))
                continue
            kept.append(self.file_paths[i])
            at += row_bytes
        return SourceSplit(name, kept, out[: len(kept)], self.problems)


def _unreadable_row(i: int, row: object, error: Exception) -> RowProblem:
    if not isinstance(row, dict):
        return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", f"it is {_kind(row)}, not a dict")
    file_path = row.get("file_path")
    known = file_path if path_problem(file_path) is None else None
    keys = ", ".join(map(repr, row))
    return RowProblem(Reason.UNREADABLE_ROW, f"row {i}", f"it has no key {error}; its keys: {keys}", known)


def _not_rows(path: Path, name: str, rows: object) -> DataError:
    return DataError(f"{path}: split {name!r} holds {_kind(rows)}, not a list of rows; write it with {_LAYOUT}")


def _kind(value: object) -> str:
    if isinstance(value, _Array):
        return "an array"
    return f"a value of type {type(value).__name__}"


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


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Unpickling makes millions of objects and no garbage; the collector would walk them all again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
