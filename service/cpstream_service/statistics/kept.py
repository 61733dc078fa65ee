"""The figures of a snapshot as they are kept beside it, for all workers, restarts and replicas that share the folder.

    <snapshot_dir>/<key>/.statistics              a line of hash, a line of JSON that says what lies where, and the texts to send
    <snapshot_dir>/<key>/.statistics.progress     the share that is done, while they are computed

Whoever computes holds a lock on the folder itself, which read-only ones have, too.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cpstream_client.files import no_follow

from ..snapshot.fingerprint import HEX_DIGITS
from ..snapshot.store import Snapshot

if TYPE_CHECKING:  # the service, which computes nothing itself, need not load all that does
    from .compute import Figures

FORMAT = 1
"""Of the file and of how the figures are computed: others are computed anew."""
_FILE, _PROGRESS = ".statistics", ".statistics.progress"  # no split's folder begins with a dot


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


def packed(snapshot: Snapshot, roles: tuple[str, ...], figures: "Mapping[str, Figures]") -> bytes:
    """The content of the file: texts as they are sent, so that whoever serves them need not read and write them again."""
    texts: list[bytes] = []
    places: dict[str, list[tuple[int, str]]] = {}
    for name, each in figures.items():
        bodies = each.statistics.model_dump_json(indent=2), each.projection.model_dump_json()
        made = [f"{body}\n".encode() for body in bodies]
        places[name] = [(len(text), blake3(text).hexdigest()[:HEX_DIGITS]) for text in made]
        texts += made
    header = json.dumps(_identity(snapshot, roles) | {"splits": places}).encode()
    body = b"\n".join([header, b"".join(texts)])
    return blake3(body).hexdigest().encode() + b"\n" + body


def unpacked(content: bytes, snapshot: Snapshot, roles: tuple[str, ...]) -> dict[str, Texts] | None:
    """The figures of each split; None where the content is damaged, or of something else."""
    digest, _, body = content.partition(b"\n")
    if digest != blake3(body).hexdigest().encode():
        return None
    header, _, texts = body.partition(b"\n")
    found = json.loads(header)
    places: dict[str, list[tuple[int, str]]] = found.pop("splits")
    if found != _identity(snapshot, roles):
        return None
    ends = accumulate(length for place in places.values() for length, _ in place)
    made = [
        Text(texts[end - length : end], digest)
        for end, (length, digest) in zip(ends, chain.from_iterable(places.values()), strict=True)
    ]
    return {name: Texts(*made[at : at + 2]) for at, name in zip(range(0, len(made), 2), places, strict=True)}


def _identity(snapshot: Snapshot, roles: tuple[str, ...]) -> dict[str, Any]:
    return {"format": FORMAT, "fingerprint": snapshot.fingerprint, "roles": sorted(roles)}


def keep(folder: Path, content: bytes) -> None:
    """Put the file in its place whole. Raises OSError."""
    writing = folder / f"{_FILE}.writing"  # of one process at a time
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
