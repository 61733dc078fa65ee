"""A split's embeddings as float16, rounded to nearest even. <snapshot_dir>/<key>/<split>/embeddings.float16.npy: (N, D).

Converting on the way out was measured at a fifth of the speed of gathering what is already converted.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from cpstream_client.files import allocate, no_follow

from ..errors import InvalidParameter
from .background import at_low_priority
from .exports import kept
from .store import Split

_ROWS = 4096
_REMEDY = "free space beside the snapshot (--snapshot-dir), or ask for float32"
_ALIGNED_HEADER_BYTES = 128

Half = npt.NDArray[np.float16]


@at_low_priority
def half_precision(split: Split) -> Half:
    """-> (N, D), a map. Where the snapshot's folder cannot be written to, it is of a file of this process alone, in TMPDIR.

    Raises InvalidParameter where a number exceeds float16, and OSError, which names the disk, where there is no room.
    """
    half = kept(split, "embeddings.float16.npy", lambda path: _write(path, split), lambda path: _map(path, split), {})
    if half is not None:
        return half
    with tempfile.NamedTemporaryFile(prefix="cpstream-float16-") as file:
        return _converted(Path(file.name), split)


def _write(path: Path, split: Split) -> None:
    _converted(path, split).flush()  # type: ignore[attr-defined] # of np.memmap


def _map(path: Path, split: Split) -> Half:
    half: Half = np.load(path, mmap_mode="r", allow_pickle=False)
    if half.shape != split.embeddings.shape or half.dtype != np.float16:  # its hash is right, so nothing here has written it
        raise ValueError(f"{path} holds {half.dtype} {half.shape}; delete it")
    return half


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
