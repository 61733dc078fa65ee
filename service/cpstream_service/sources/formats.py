"""What a file is, from its first bytes: the header of an .npy file, or what else it is and what to do about it."""

import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError

HEAD_BYTES = 512
_NPY = b"\x93NUMPY"
_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_PICKLE_0 = re.compile(rb"\(d(p\d+)?\n?|\(l(p\d+)?\n?|\}q|\]q|cnumpy|c_?_?[a-z_]+\n")  # protocols 0 and 1 have no mark of their own
_TORCH = "is a file of torch.save, not an .npy file; load it with torch.load and write its numbers with"


def check_npy(path: Path, head: bytes, layout: str) -> None:
    """Raise DataError unless a file that starts with `head` is an .npy file. layout: how one is written."""
    if head.startswith(_NPY):
        return
    if not head:
        raise DataError(f"{path} is empty; write it with {layout}")
    if _NPY.startswith(head):
        raise DataError(f"{path} is truncated: it ends after {len(head)} bytes, within the data; copy or write it again")
    check_pointer(path, head)
    if head.startswith(b"PK"):
        if b"/data.pkl" in head or b"/.format_version" in head:
            raise DataError(f"{path} {_TORCH} {layout}")
        raise DataError(f"{path} is an archive as np.savez writes it, not an .npy file; write it with {layout}")
    if head.startswith(_TORCH_LEGACY):
        raise DataError(f"{path} {_TORCH} {layout}")
    if head.startswith(b"\x80") or _PICKLE_0.match(head):
        raise DataError(f"{path} is a bare pickle, not an .npy file; write it with {layout}")
    for start, kind, remedy in (
        (b"PAR1", "a Parquet file", "set --source-type parquet"),
        (b"\x89HDF", "an HDF5 file", "write its arrays with " + layout),
        (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip"),
    ):
        if head.startswith(start):
            raise DataError(f"{path} is {kind}, not an .npy file; {remedy}")
    raise DataError(f"{path} is not an .npy file (it starts with {head[:6]!r}); write it with {layout}")


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of an .npy file, which is then read as far as its data. Raises EOFError, or ValueError."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        if "EOF: reading" in str(error):
            raise EOFError("the header is cut off") from None
        raise ValueError(f"its .npy header is damaged ({str(error).splitlines()[0][:80]})") from None
    return shape, dtype


def check_pointer(path: Path, head: bytes) -> None:
    """Raise DataError where a file only points to its content, which Git LFS or git-annex keeps elsewhere."""
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a pointer of Git LFS, not the data; fetch it: git lfs pull")
    if head.startswith(b"/annex/objects/"):
        raise DataError(f"{path} is a pointer of git-annex, not the data; fetch it: git annex get")
