"""Embeddings in huge pages after all, where these were too dear while somebody waited for the snapshot: see huge_pages.py.

The writer leaves a mark. When the split is streamed, its file is written again, at a low priority, and takes the first one's place:
the same bytes, so that nobody who opens it, or has it open, sees a difference but in time.
"""

import errno
import os
import threading
from contextlib import suppress
from functools import partial
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from ..sources.formats import read_npy_header
from ..sources.rows import rows_per_chunk
from .background import at_low_priority
from .exports import alone
from .fingerprint import pieces, split_fingerprint
from .huge_pages import WRITE_BYTES, huge_page_writer
from .store import EMBEDDINGS, SMALL_PAGES, Split

_WRITING = f"{EMBEDDINGS}.writing"


def is_in_small_pages(split: Split) -> bool:
    return (split.path / SMALL_PAGES).exists()


@at_low_priority
def in_huge_pages(split: Split, stop: threading.Event) -> npt.NDArray[np.float32]:
    """-> (N, D), a map of the split's file as it is now. Of several processes, one writes it.

    Raises OSError where it cannot be written, or `stop` is set meanwhile; then all is as it was.
    """
    # By the folder itself: there may soon be another under its name, or none.
    folder = os.open(split.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with alone(split.path / ".rewriting.lock"):
            if is_in_small_pages(split):
                _write_again(folder, split, stop)
        with open(EMBEDDINGS, "rb", opener=partial(_open_in, folder)) as file:
            return _mapped(file, split)
    finally:
        os.close(folder)


def _write_again(folder: int, split: Split, stop: threading.Event) -> None:
    try:
        with open(_WRITING, "w+b", opener=partial(_open_in, folder)) as file:
            with huge_page_writer(file, whatever_it_takes=True) as out:
                header = {"descr": "<f4", "fortran_order": False, "shape": split.embeddings.shape}
                np.lib.format.write_array_header_1_0(cast(IO[bytes], out), header)
                rows = rows_per_chunk(split.embeddings.shape[1], WRITE_BYTES)
                for low in range(0, len(split.embeddings), rows):
                    if stop.is_set():
                        raise OSError(errno.EINTR, os.strerror(errno.EINTR), str(split.path))
                    out.write(split.embeddings[low : low + rows].reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            copy = _mapped(file, split)
            shape: tuple[int, int] = copy.shape
            if split_fingerprint(shape, pieces(copy), split.cps, split.file_paths, split.labels) != split.fingerprint:
                raise OSError(errno.EIO, "what was written is not what was read", str(split.path))
        os.replace(_WRITING, EMBEDDINGS, src_dir_fd=folder, dst_dir_fd=folder)
        os.unlink(SMALL_PAGES, dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        _unlink(folder)
        raise


def _mapped(file: IO[bytes], split: Split) -> npt.NDArray[np.float32]:
    shape, dtype = read_npy_header(file)
    if shape != split.embeddings.shape or dtype != np.dtype("<f4"):
        raise OSError(errno.EIO, f"it holds {dtype} {shape}", str(split.path))
    return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape)


def _open_in(folder: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)


def _unlink(folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(_WRITING, dir_fd=folder)
