"""Files in folders that several processes share, and that others may write to: opened without following links, with their space."""

import errno
import fcntl
import os
from pathlib import Path

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def no_follow(path: str, flags: int) -> int:
    """An `opener` for open(): a link that somebody has planted under the name is an error, and its target stays as it is."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def allocate(path: Path, nbytes: int, remedy: str) -> None:
    """Make a file of zeros that has its space on the disk.

    A sparse file has none: on a full disk, writing to its memory map would end the process by SIGBUS. Raises OSError with the
    remedy where there is not enough.
    """
    with open(path, "wb", opener=no_follow) as file:
        try:
            if nbytes:
                os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            free = os.statvfs(path.parent)
            free_mb = free.f_bavail * free.f_frsize / 1e6
            text = f"{os.strerror(error.errno)}: {nbytes / 1e6:,.0f} MB are needed and {free_mb:,.0f} MB are free; {remedy}"
            raise OSError(error.errno, text, str(path.parent)) from None


def lock(descriptor: int, operation: int, path: Path, remedy: str) -> None:
    """flock. Raises BlockingIOError with LOCK_NB, and OSError with the remedy where the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        text = f"this file system has no file locks ({os.strerror(error.errno)}), as some of NFS and Lustre; {remedy}"
        raise OSError(error.errno, text, str(path)) from None
