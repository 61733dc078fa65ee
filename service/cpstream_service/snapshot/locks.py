"""Who may write a snapshot, and what may be removed: locks on files of the snapshot folder, which several services may share."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpstream_client.files import lock, no_follow

from .last_use import ONLY_CURRENT, Retention
from .store import MANIFEST, PLACED, SnapshotInvalid, read_manifest

_ELSEWHERE = "set --snapshot-dir to a folder on a local disk"


@contextmanager
def writing(snapshot_dir: Path, key: str) -> Iterator[None]:
    """Be the only process that writes <key>; waits for another one. Removes what killed writers left behind.

    Raises OSError where the file system has no locks, or the lock's name is a link.
    """
    snapshot_dir.mkdir(parents=True, exist_ok=True)
    path = snapshot_dir / f".lock-{key}"
    while True:
        held = no_follow(str(path), os.O_RDWR | os.O_CREAT)
        try:
            lock(held, fcntl.LOCK_EX, snapshot_dir, _ELSEWHERE)
            if _is_still(path, held):
                break
        except BaseException:
            os.close(held)
            raise
        os.close(held)  # another writer was done, and took the file away, while this one waited for it
    try:
        remove_leftovers(snapshot_dir, key)
        yield
    finally:
        remove_leftovers(snapshot_dir, key)  # of a writer that failed, too: on a full disk they would keep it full
        path.unlink(missing_ok=True)
        os.close(held)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove_outdated(snapshot_dir: Path, identity: str, keep: Path, retention: Retention = ONLY_CURRENT) -> None:
    """Remove other snapshots of the same settings that no process has open, and what killed writers left behind."""
    others = sorted((path for path in placed(snapshot_dir, identity) if path.parent != keep), key=_written, reverse=True)
    for path in others[retention.versions - 1 :]:
        if not retention.still_used(path.parent):
            remove_unless_open(path.parent)
    for path in snapshot_dir.glob(".writing-*"):
        key = path.name.split("-")[1]
        lock_path = snapshot_dir / f".lock-{key}"
        if not lock_path.exists():  # a writer takes its lock before it makes the folder
            shutil.rmtree(path, ignore_errors=True)
        elif (held := _try_lock(lock_path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
            os.close(held)


def remove_unless_open(snapshot: Path) -> bool:
    """Remove a snapshot that no process has open. Returns whether it is gone."""
    if (held := _try_lock(snapshot / MANIFEST)) is not None:
        shutil.rmtree(snapshot, ignore_errors=True)
        os.close(held)
    return not (snapshot / MANIFEST).exists()


def placed(snapshot_dir: Path, identity: str) -> list[Path]:
    """The manifests of all snapshots of these settings."""
    found = []
    for path in snapshot_dir.glob(PLACED):
        try:
            if read_manifest(path.parent)["identity"] == identity:
                found.append(path)
        except SnapshotInvalid:
            continue
    return found


def _written(manifest: Path) -> float:
    try:
        return manifest.stat().st_mtime
    except OSError:  # removed by another process
        return 0.0


def _try_lock(path: Path) -> int | None:
    """Lock a file if nobody else has it locked."""
    try:
        held = no_follow(str(path), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def remove_leftovers(snapshot_dir: Path, key: str) -> None:
    """Remove what was written of a snapshot and never came to its place. The caller holds `writing(snapshot_dir, key)`."""
    for path in snapshot_dir.glob(f".writing-{key}-*"):
        shutil.rmtree(path, ignore_errors=True)
