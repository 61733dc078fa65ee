"""Files in folders that several processes share, and that others may write to: opened without following links, with their space."""

import errno
import fcntl
import grp
import os
import pwd
import stat
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


def writable_by_others(folder: Path) -> str | None:
    """What is to be said of a folder in which others may change files; None where nobody else may, or it is not there.

    root may everywhere. A group that is named like its user is taken for this user's own, as many systems make one.
    """
    try:
        status = folder.stat()
    except OSError:
        return None
    owner, reasons = _user(status.st_uid), []
    if status.st_uid not in (os.geteuid(), 0):
        reasons.append(f"it belongs to {owner}")
    if not status.st_mode & stat.S_ISVTX:  # which has each user remove and rename their own files alone
        if status.st_mode & stat.S_IWOTH:
            reasons.append("everybody may write")
        elif status.st_mode & stat.S_IWGRP and (group := _group(status.st_gid)) != owner:
            reasons.append(f"group {group} may write")
    if not reasons:
        return None
    return f"{folder}: others can change what is kept here ({', '.join(reasons)}, mode {stat.S_IMODE(status.st_mode):o})"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
