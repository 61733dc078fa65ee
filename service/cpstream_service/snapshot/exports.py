"""A split in another form, kept beside its snapshot: made when first asked for, once, and shared by workers and restarts.

<snapshot_dir>/<key>/<split>/embeddings.float16.npy     (N, D) float16
<snapshot_dir>/<key>/<split>/embeddings.float16.json    its hash; written last
"""

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from cpstream_client.files import allocate, lock, no_follow

from ..errors import InvalidParameter
from .fingerprint import file_hash
from .store import Split

_ROWS = 4096
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_REMEDY = "free space beside the snapshot (--snapshot-dir), or ask for float32"
_ALIGNED_HEADER_BYTES = 128

Half = npt.NDArray[np.float16]


def half_precision(split: Split) -> Half:
    """A split's embeddings as float16, rounded to nearest even. -> (N, D), a map.

    Converting on the way out was measured at a fifth of the speed of gathering what is already converted. Where the snapshot's
    folder cannot be written to, the copy is a file of this process alone, in the temporary folder. Raises InvalidParameter where a
    number exceeds float16, and OSError, which names the disk, where there is no room.
    """
    path = split.path / "embeddings.float16.npy"
    try:
        with _alone(split.path / ".float16.lock"):
            made = _opened(path, split)
            if made is None:
                _make(path, split)
                made = _opened(path, split)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        made = None
    if made is not None:
        return made
    with tempfile.NamedTemporaryFile(prefix="cpstream-float16-") as file:
        return _converted(Path(file.name), split)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    held = no_follow(str(path), os.O_RDWR | os.O_CREAT)
    try:
        lock(held, fcntl.LOCK_EX, path.parent, "set --snapshot-dir to a folder on a local disk")
        yield
    finally:
        os.close(held)


def _opened(path: Path, split: Split) -> Half | None:
    """The copy that an earlier process has made, if it is whole."""
    try:
        note = json.loads(path.with_suffix(".json").read_bytes())
        if note != {"fingerprint": split.fingerprint, "blake3": file_hash(path)}:
            return None
        half: Half = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return half if half.shape == split.embeddings.shape and half.dtype == np.float16 else None


def _make(path: Path, split: Split) -> None:
    """Write the copy beside its place, then rename it there; the note last."""
    temporary = path.with_suffix(".writing")
    temporary.unlink(missing_ok=True)
    try:
        _converted(temporary, split).flush()  # type: ignore[attr-defined] # of np.memmap
        with _synced(temporary):
            pass
        note = {"fingerprint": split.fingerprint, "blake3": file_hash(temporary)}
        temporary.replace(path)
        with _synced(path.with_suffix(".json"), "wb") as file:
            file.write(json.dumps(note).encode())
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _synced(path: Path, mode: str = "rb") -> Iterator[IO[bytes]]:
    with open(path, mode, opener=no_follow) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _converted(path: Path, split: Split) -> Half:
    """Fill a new .npy file with the float16 of the embeddings, and map it."""
    header = {"descr": "<f2", "fortran_order": False, "shape": split.embeddings.shape}
    allocate(path, _ALIGNED_HEADER_BYTES + split.embeddings.size * 2, _REMEDY)
    with open(path, "r+b", opener=no_follow) as file:
        npy_format.write_array_header_1_0(file, header)
        half: Half = np.memmap(file, np.float16, "r+", offset=file.tell(), shape=split.embeddings.shape)
    with np.errstate(over="ignore"):
        for low in range(0, len(half), _ROWS):
            half[low : low + _ROWS] = split.embeddings[low : low + _ROWS]
            if np.isinf(half[low : low + _ROWS]).any():
                raise InvalidParameter("dtype float16 cannot hold this split's embeddings: some exceed 65504; ask for float32")
    return half
