"""Embeddings from numpy_embs.npy: np.save of {split: [{"embedding": list or array, "file_path": str}, ...]}.

The same dict in an array of one element is read, too, and a flat list of rows that each name their `split`.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DataError
from .counted import Counted
from .formats import HEAD_BYTES, check_npy, read_npy_header
from .npy_apart import read_apart, reading_begun
from .npy_content import LAYOUT, UnreadableError, read_content, truncated
from .regular import open_regular
from .rows import SourceSplit

FILE_NAME = "numpy_embs.npy"


def read_npy(
    path: Path, splits: Sequence[str] = (), columns: Sequence[str] = (), *, progress: bool = False, apart: bool = True
) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all of them. columns: further keys of the rows to keep. Executes nothing that the file says.

    apart: in a process of its own, so that a crafted file takes no more memory and time than npy_apart.py allows, and harms nobody.
    Raises DataError when the file is missing, empty, truncated, hostile, or laid out otherwise, or lacks a split.
    """
    with _opened(path) as file:
        if apart:
            return read_apart(path, file, splits, columns, progress)
        raw: io.RawIOBase = Counted(file.fileno(), path.name) if progress else io.FileIO(file.fileno(), closefd=False)
        try:
            with raw:
                return read_content(raw, splits, columns, progress=progress)
        except UnreadableError as error:
            raise DataError(f"{path}{error}") from None


@contextmanager
def reading_npy(path: Path, splits: Sequence[str] = (), columns: Sequence[str] = (), *, progress: bool = False) -> Iterator[None]:
    """Within, read_npy of the same has begun, in its process. What is wrong with the file is said by read_npy alone."""
    with ExitStack() as stack:
        with suppress(DataError):
            stack.enter_context(reading_begun(path, stack.enter_context(_opened(path)), splits, columns, progress))
        yield


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The open file, its descriptor where the pickle begins. Raises DataError where there is none."""
    with open_regular(path, f"the folder that holds {FILE_NAME}") as file:
        check_npy(path, file.peek(HEAD_BYTES)[:HEAD_BYTES], LAYOUT)  # type: ignore[attr-defined] # it is a BufferedReader
        _read_header(path, file)
        os.lseek(file.fileno(), file.tell(), os.SEEK_SET)  # past what the buffer has read
        yield file


def _read_header(path: Path, file: IO[bytes]) -> None:
    """Read as far as the pickle; DataError if there is none."""
    try:
        shape, dtype = read_npy_header(file)
    except EOFError:
        raise DataError(f"{path}{truncated(os.fstat(file.fileno()).st_size)}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; write it again: {LAYOUT}") from None
    if dtype != np.dtype(object):
        raise DataError(f"{path} is a plain array of {dtype} with shape {shape}, without file paths; write it with {LAYOUT}")
