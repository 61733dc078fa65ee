"""The figures of a snapshot as they are kept beside it, for all workers, restarts and replicas that share the folder.

    <snapshot_dir>/<key>/statistics.json          hash, and the figures of all splits with what they are of
    <snapshot_dir>/<key>/.statistics.progress     the share that is done, while they are computed

Whoever computes holds a lock on the folder itself, which read-only ones have, too.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from cpstream_client.files import no_follow

from ..snapshot.fingerprint import HEX_DIGITS
from ..snapshot.store import Snapshot
from .compute import Figures

FORMAT = 1
"""Of the file and of how the figures are computed: others are computed anew."""
_FILE, _PROGRESS = "statistics.json", ".statistics.progress"


@dataclass(frozen=True, eq=False)
class Text:
    """JSON as it is sent. digest: of its bytes."""

    body: bytes
    digest: str


@dataclass(frozen=True, eq=False)
class Texts:
    """What is said of one split."""

    statistics: Text
    projection: Text


def packed(snapshot: Snapshot, roles: tuple[str, ...], figures: Mapping[str, Figures]) -> bytes:
    """The content of the file."""
    splits = {name: each.model_dump(mode="json", exclude_none=False) for name, each in figures.items()}
    body = json.dumps(_identity(snapshot, roles) | {"splits": splits}, ensure_ascii=False, allow_nan=False).encode()
    return blake3(body).hexdigest().encode() + b"\n" + body


def unpacked(content: bytes, snapshot: Snapshot, roles: tuple[str, ...]) -> dict[str, Texts] | None:
    """The figures of each split; None where the content is damaged, or of something else."""
    digest, _, body = content.partition(b"\n")
    if digest != blake3(body).hexdigest().encode():
        return None
    found = json.loads(body)
    splits = found.pop("splits")
    if found != _identity(snapshot, roles):
        return None
    return {
        name: Texts(_text(each["statistics"], indent=2), _text(each["projection"], separators=(",", ":")))
        for name, each in splits.items()
    }


def _identity(snapshot: Snapshot, roles: tuple[str, ...]) -> dict[str, Any]:
    return {"format": FORMAT, "fingerprint": snapshot.fingerprint, "roles": sorted(roles)}


def _text(content: object, **layout: Any) -> Text:
    body = json.dumps(content, ensure_ascii=False, **layout).encode() + b"\n"
    return Text(body, blake3(body).hexdigest()[:HEX_DIGITS])


def keep(folder: Path, content: bytes) -> None:
    """Put the file in its place whole. Raises OSError."""
    writing = folder / f".{_FILE}"  # of one process at a time
    try:
        with open(writing, "wb", opener=no_follow) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(folder / _FILE)
    finally:
        writing.unlink(missing_ok=True)


def read(snapshot: Snapshot, roles: tuple[str, ...]) -> dict[str, Texts] | None:
    """What is kept; None where there is nothing, or nothing that is whole and of this snapshot."""
    try:
        with open(snapshot.path / _FILE, "rb", opener=no_follow) as file:
            return unpacked(file.read(), snapshot, roles)
    except OSError:
        return None


def lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it, and all that inherit it, are closed; None while another one holds it.

    Where the file system has no locks it holds nothing. Raises OSError where the folder is gone.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:
        pass
    return held


class Progress:
    """The share that is done, written down for others. Where this cannot be, as in a read-only folder, they see none."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _PROGRESS

    def note(self, share: float) -> None:
        with suppress(OSError), open(self._path, "w", opener=no_follow) as file:
            file.write(f"{share:.4f}")

    def remove(self) -> None:
        with suppress(OSError):
            self._path.unlink()


def progress(folder: Path) -> float:
    """What another process has written down of its progress."""
    try:
        with open(folder / _PROGRESS, opener=no_follow) as file:
            return min(max(float(file.read(16)), 0.0), 1.0)
    except (OSError, ValueError):
        return 0.0
