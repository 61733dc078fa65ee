"""A split in another form, kept beside its snapshot: made when first asked for, once, and shared by workers and restarts.

<snapshot_dir>/<key>/<split>/<name>           what half.py and parquet.py make
<snapshot_dir>/<key>/<split>/<stem>.json      its hash, and what it was made by; written last
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from cpstream_client.files import lock, no_follow

from .fingerprint import file_hash
from .store import Split

T = TypeVar("T")
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def kept(
    split: Split, name: str, make: Callable[[Path], None], opened: Callable[[Path], T], made_by: Mapping[str, str]
) -> T | None:
    """What `opened` makes of the whole, unaltered file of this name; None where the snapshot's folder cannot be written to.

    make: writes it at another path; called where there is none, or one that is not whole or was made by something else. Raises what
    it raises, and leaves nothing behind; OSError names the disk.
    """
    path = split.path / name
    try:
        with alone(path.with_name(f".{path.stem}.lock")):
            note = {"fingerprint": split.fingerprint, **made_by}
            if not _is_whole(path, note):
                _make(path, note, make)
            return opened(path)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within, no other process is at what this lock is of. Raises OSError."""
    held = no_follow(str(path), os.O_RDWR | os.O_CREAT)
    try:
        lock(held, fcntl.LOCK_EX, path.parent, "set --snapshot-dir to a folder on a local disk")
        yield
    finally:
        os.close(held)


def _is_whole(path: Path, note: Mapping[str, str]) -> bool:
    """Whether an earlier process has made it, of the same."""
    try:
        return bool(json.loads(path.with_suffix(".json").read_bytes()) == {**note, "blake3": file_hash(path)})
    except (OSError, ValueError):
        return False


def _make(path: Path, note: Mapping[str, str], make: Callable[[Path], None]) -> None:
    """Write it beside its place, then rename it there; the note last."""
    temporary = path.with_suffix(".writing")
    temporary.unlink(missing_ok=True)
    try:
        make(temporary)
        with _synced(temporary):
            pass
        whole = {**note, "blake3": file_hash(temporary)}
        temporary.replace(path)
        with _synced(path.with_suffix(".json"), "wb") as file:
            file.write(json.dumps(whole).encode())
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _synced(path: Path, mode: str = "rb") -> Iterator[IO[bytes]]:
    with open(path, mode, opener=no_follow) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
