"""Embeddings from a folder of .npy files, one array a recording, as many toolkits write them.

The key of a recording is the file's path within the folder, without .npy: it matches a CPS row by the path without its extension.
"""

import io
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MissingFileError
from ..progress import Bar
from .collect import Collector
from .formats import HEAD_BYTES, check_npy, read_npy_header
from .regular import files_under, open_regular
from .rows import ALL, SourceSplit

SUFFIX = ".npy"
WHAT = "the folder of the .npy files, one a recording"
_LAYOUT = "np.save(path, embedding), an array of shape (D,)"


def npy_folder_files(path: Path) -> list[Path]:
    """The arrays of a folder, in order. Raises DataError where there is none."""
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such folder; set --source-path to {WHAT}")
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; set --source-path to {WHAT}")
    files = list(files_under(path, SUFFIX))
    if not files:
        raise DataError(f"{path} holds no {SUFFIX} file; set --source-path to {WHAT}")
    return files


def read_npy_folder(path: Path, *, progress: bool = False) -> dict[str, SourceSplit]:
    """All recordings of a folder, as the split ALL. Raises DataError; a file that is no vector is a row that cannot be used."""
    found = Collector(ALL)
    for file in Bar(npy_folder_files(path), path.name, disable=None if progress else True, delay=2, unit=" files"):
        key = file.relative_to(path).as_posix().removesuffix(SUFFIX)
        try:
            found.add(f"file {key}{SUFFIX}", key, read_array(file))
        except (DataError, ValueError, EOFError) as error:
            found.refuse(f"file {key}{SUFFIX}", str(error).removeprefix(f"{file}").lstrip(": "), key)
    return {ALL: found.finish(bare_keys=True)}


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of one .npy file, without Python objects and without reading more than a vector. Raises DataError, ValueError."""
    with open_regular(path, WHAT) as file:
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined] # it is a BufferedReader
        check_npy(path, head, _LAYOUT)
        shape, dtype, offset = _header_of(head)
        if dtype.hasobject:
            raise DataError(f"{path} holds Python objects, not numbers; if it is {{split: rows}}, set --source-type npy")
        count = math.prod(shape)
        if min(shape, default=-1) < 0 or max(shape) != count:
            raise ValueError(f"the embedding has shape {shape}; it must have one dimension")
        file.seek(offset)
        array = np.frombuffer(file.read(min(count * dtype.itemsize, os.fstat(file.fileno()).st_size)), dtype)
    if array.size != count:
        raise ValueError(f"it is truncated: {array.size} of {count} numbers are there; copy or write it again")
    return array


def _header_of(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, where the numbers start), from the first bytes of a file. Raises ValueError."""
    length = int.from_bytes(head[8:10], "little") + 10 if head[6:7] == b"\1" else int.from_bytes(head[8:12], "little") + 12
    return _parsed(head[:length])


@lru_cache(maxsize=64)
def _parsed(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """One header is that of a hundred thousand files, and parsing it is most of the work of reading one."""
    file = io.BytesIO(header)
    shape, dtype = read_npy_header(file)
    return shape, dtype, file.tell()
