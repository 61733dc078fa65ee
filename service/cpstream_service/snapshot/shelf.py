"""Which snapshots lie in a folder that replicas share, by the fingerprints of their splits."""

from dataclasses import dataclass, field
from pathlib import Path

from .store import MANIFEST, PLACED, SnapshotInvalid, read_manifest


@dataclass
class Shelf:
    """The snapshots beside one, of the same settings and the same forget list. Manifests are read once."""

    snapshot: Path
    _known: dict[Path, tuple[tuple[int, int], dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._kind = _kind_of(self.snapshot)

    def find(self, split: str, fingerprint: str) -> str | None:
        """The key of a snapshot that has this split of this fingerprint. It need not be whole: open_snapshot says so."""
        for path in self.snapshot.parent.glob(PLACED):
            if self._prints(path.parent).get(split) == fingerprint:
                return path.parent.name
        return None

    def _prints(self, folder: Path) -> dict[str, str]:
        """The fingerprints of its splits; none where it is of another kind."""
        try:
            status = (folder / MANIFEST).stat()
            stamp = status.st_ino, status.st_mtime_ns
            known = self._known.get(folder)
            if known is None or known[0] != stamp:
                known = self._known[folder] = stamp, _prints_of(folder) if _kind_of(folder) == self._kind else {}
        except (OSError, SnapshotInvalid):
            self._known.pop(folder, None)
            return {}
        return known[1]


def _kind_of(folder: Path) -> tuple[str, str]:
    manifest = read_manifest(folder)
    return manifest["identity"], manifest.get("forgotten", "")


def _prints_of(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["info"]["fingerprint"] for entry in read_manifest(folder)["splits"]}
