"""From the settings to an open snapshot: map it at once where nothing changed, or else read the source, align and write.

A source in files is keyed by their content. A Chroma database has no version of its content, so it is read at every start;
when it cannot be reached, the last good snapshot of the same settings serves.
"""

import glob
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..align.align import AlignedSplit
from ..align.splits import align_all, refuse
from ..errors import DataError, SourceUnavailableError
from ..settings import DataSettings
from ..sources.chroma.address import server_url
from ..sources.read import cps_path, source_files
from ..sources.rows import gc_paused, rows_per_chunk
from .fingerprint import HEX_DIGITS, dataset_fingerprint, file_hash, split_fingerprint
from .locks import remove_outdated, writing
from .store import (
    FORMAT,
    PLACED,
    Snapshot,
    SnapshotInvalid,
    open_snapshot,
    read_manifest,
    write_snapshot,
)

_SETTLED_S = 2.0


@dataclass(frozen=True)
class Loaded:
    """What a service starts with. stale_reason: why the snapshot may be out of date, or None. notes: for the log."""

    snapshot: Snapshot
    stale_reason: str | None = None
    notes: list[str] = field(default_factory=list)


def load(settings: DataSettings, *, progress: bool = False) -> Loaded:
    """The snapshot of the data that the settings name, written now if need be.

    Raises DataError; AlignmentError, with the reports, when a split aligns nothing, or with strict when rows are dropped.
    """
    try:
        settings.snapshot_dir.mkdir(parents=True, exist_ok=True)
        with gc_paused():
            loaded = _load_chroma(settings, progress) if settings.source_type == "chromadb" else _load_files(settings, progress)
    except DataError:  # one of them is an OSError, too
        raise
    except OSError as error:
        raise DataError(
            f"{error.filename or settings.snapshot_dir}: {error.strerror or error}; the snapshots are kept in "
            f"{settings.snapshot_dir}: make it writable, free space there, or set --snapshot-dir"
        ) from error
    refuse(settings, tuple(loaded.snapshot.reports.values()))
    remove_outdated(settings.snapshot_dir, identity_of(settings), loaded.snapshot.path)
    return loaded


def identity_of(settings: DataSettings) -> str:
    """Hash of the settings that say which data it is and that shape it."""
    source_path = settings.source_path
    return _hash(
        FORMAT,
        settings.source_type,
        str(source_path.resolve()) if source_path else None,
        (server_url(settings), settings.chroma_tenant, settings.chroma_database, settings.collection_name)
        if settings.source_type == "chromadb"
        else None,
        str(cps_path(settings, "{split}").resolve()),
        settings.path_column,
        settings.cps_column,
        settings.csv_encoding,
        settings.cps_from,
        settings.labels,
        (settings.text_column, settings.duration_column, settings.text_count),
        settings.match,
        settings.map_root,
        settings.splits,
    )


# Files


def _load_files(settings: DataSettings, progress: bool) -> Loaded:
    groups = _files_of(settings)
    before = [[_stat(path) for path in group] for group in groups]
    hashes = [_content_hash(group, settings.snapshot_dir) for group in groups]
    key = _hash(identity_of(settings), hashes, [str(path) for group in groups for path in group])
    target = settings.snapshot_dir / key
    notes = []
    try:
        return Loaded(open_snapshot(target), notes=[f"snapshot {key} is up to date"])
    except SnapshotInvalid as error:
        if target.exists():
            notes.append(f"rebuilding a snapshot: {error}")
    with writing(settings.snapshot_dir, key):
        try:
            return Loaded(open_snapshot(target), notes=[f"snapshot {key} was written by another process"])
        except SnapshotInvalid:
            pass
        splits = align_all(settings, progress=progress)
        refuse(settings, [split.report for split in splits])
        if [[_stat(path) for path in group] for group in _files_of(settings)] != before:
            first = groups[0][0] if len(groups[0]) == 1 else settings.source_path
            raise DataError(f"{first} or a CPS table beside it changed while it was read; start again when it is complete")
        source = settings.source_type
        write_snapshot(settings.snapshot_dir, key, splits, source=source, identity=identity_of(settings), progress=progress)
        return Loaded(open_snapshot(target), notes=[*notes, f"wrote snapshot {key}"])


def _files_of(settings: DataSettings) -> list[list[Path]]:
    """The files that shape the data, as far as they exist: those of the source, and each CPS table."""
    if settings.cps_from == "source":
        tables = []
    elif settings.splits:
        tables = [cps_path(settings, split) for split in settings.splits]
    else:
        tables = [Path(path) for path in sorted(glob.glob(glob.escape(str(cps_path(settings, "{split}"))).replace("{split}", "*")))]
    groups = [source_files(settings), *([table] for table in tables)]
    return [held for group in groups if (held := [path for path in group if path.is_file()])]


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns]


def _content_hash(files: list[Path], snapshot_dir: Path) -> str:
    """Hash of the content of files, remembered with their sizes, inodes and times so that unchanged files are not read again.

    Safe because the kernel sets the ctime at every change and no program can set it back. A change within the clock's tick would
    not show, so a file that changed in the last seconds is not remembered.
    """
    memory = snapshot_dir / f".content-{_hash(*(str(path.resolve()) for path in files))}.json"
    stats = [_stat(path) for path in files]
    stat: Any = stats[0] if len(stats) == 1 else _hash(stats)
    try:
        remembered = json.loads(memory.read_bytes())
        if remembered["stat"] == stat:
            return str(remembered["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hashes = [file_hash(path) for path in files]
    content = hashes[0] if len(hashes) == 1 else _hash(*hashes)
    if time.time() - max(max(each[3:]) for each in stats) / 1e9 > _SETTLED_S and [_stat(path) for path in files] == stats:
        temporary = memory.with_suffix(f".{secrets.token_hex(4)}.tmp")
        temporary.write_text(json.dumps({"file": str(files[0]), "stat": stat, "hash": content}))
        temporary.replace(memory)
    return content


# Chroma


def _load_chroma(settings: DataSettings, progress: bool) -> Loaded:
    identity = identity_of(settings)
    try:
        splits = align_all(settings, progress=progress)
    except SourceUnavailableError as error:
        snapshot = _last_good(settings.snapshot_dir, identity)
        if snapshot is None:
            raise
        return Loaded(snapshot, f"{error}; serving the snapshot of {snapshot.created_at}", [f"serving the last snapshot: {error}"])
    refuse(settings, [split.report for split in splits])
    reports = [split.report.model_dump(mode="json") for split in splits]
    key = _hash(identity, _fingerprint_of(splits), reports)
    with writing(settings.snapshot_dir, key):
        try:
            return Loaded(open_snapshot(settings.snapshot_dir / key), notes=[f"snapshot {key} is up to date"])
        except SnapshotInvalid:
            pass
        source = f"chromadb, collection {settings.collection_name}"
        path = write_snapshot(settings.snapshot_dir, key, splits, source=source, identity=identity, progress=progress)
        return Loaded(open_snapshot(path), notes=[f"wrote snapshot {key}"])


def _fingerprint_of(splits: list[AlignedSplit]) -> str:
    fingerprints = {}
    for split in splits:
        rows = rows_per_chunk(split.dimension)
        gathered = (split.gather(low, low + rows) for low in range(0, len(split), rows))
        shape = (len(split), split.dimension)
        fingerprints[split.name] = split_fingerprint(shape, gathered, split.cps, split.arrow_paths, split.labels)
    return dataset_fingerprint(fingerprints)


def _last_good(snapshot_dir: Path, identity: str) -> Snapshot | None:
    """The newest whole snapshot of the same settings."""
    found = []
    for path in snapshot_dir.glob(PLACED):
        try:
            manifest = read_manifest(path.parent)
        except SnapshotInvalid:
            continue
        if manifest["identity"] == identity:
            found.append((os.stat(path).st_mtime_ns, path.parent))
    for _, folder in sorted(found, reverse=True):
        try:
            return open_snapshot(folder)
        except SnapshotInvalid:
            continue
    return None


def _hash(*parts: object) -> str:
    return blake3(json.dumps(parts).encode()).hexdigest()[:HEX_DIGITS]
