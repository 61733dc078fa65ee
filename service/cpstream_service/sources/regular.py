"""Regular files, opened so that nothing else is: a pipe would wait for ever, a device never end."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import DataError, MissingFileError


def open_regular(path: Path, what: str, setting: str = "--source-path") -> IO[bytes]:
    """Open a regular file to read. what it should be, and the setting that names it, are for the message.

    Raises MissingFileError, or DataError where it is something else or may not be read.
    """
    return os.fdopen(descriptor_of(path, what, setting), "rb")


def descriptor_of(path: Path, what: str, setting: str = "--source-path") -> int:
    """The same as a descriptor, which is the caller's to close."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file; set {setting} to {what}") from None
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot read it: {reason}; check the path and its permissions") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path}: cannot read it: Is a directory; set {setting} to {what}")
        if not stat.S_ISREG(mode):
            raise DataError(f"{path} is {_kind(mode)}, not a file; set {setting} to {what}")
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def files_under(folder: Path, suffix: str) -> Iterator[Path]:
    """The files of that suffix under a folder, in order, without hidden ones; each folder once, whatever links to it."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(suffix) and not name.startswith("."):
                yield Path(root, name)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return next((kind for test, kind in kinds if test(mode)), "something else")
