"""From the settings to an open snapshot: map it at once where nothing changed, or else read the source, align and write.

A source in files is keyed by their content. A Chroma database has no version of its content, so it is read at every start;
when it cannot be reached, the last good snapshot of the same settings serves.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cpstream_client.contract.bodies import AlignmentReport

from ..align.align import AlignedSplit
from ..align.forget import NOTHING, ForgetList, read_forget_list, strangers
from ..align.splits import align_all, judged_again
from ..align.verdict import refuse
from ..errors import DataError, SourceUnavailableError
from ..progress import tell
from ..settings import DataSettings
from ..sources.read import reading, source_files
from ..sources.rows import gc_paused, rows_per_chunk
from ..sources.tables import source_columns
from .fingerprint import dataset_fingerprint, split_fingerprint
from .gathered import UnsoundError
from .inputs import Files, digest_of, hash_of, identity_of
from .last_use import ONLY_CURRENT, Retention
from .locks import remove_leftovers, remove_outdated, writing
from .store import PLACED, Snapshot, SnapshotInvalid, open_snapshot, read_manifest, write_snapshot


@dataclass(frozen=True)
class Loaded:
    """What a service starts with. stale_reason: why the snapshot may be out of date, or None. notes: for the log."""

    snapshot: Snapshot
    stale_reason: str | None = None
    notes: list[str] = field(default_factory=list)


def find_current(settings: DataSettings, retention: Retention = ONLY_CURRENT) -> Loaded | None:
    """What load gives where nothing has to be read of the source but its files' times and, if these changed, hashes; else None.

    It spares the modules that read sources. Raises as load.
    """
    settings = replace(settings, snapshot_dir=settings.snapshot_folder())
    if settings.source_type == "chromadb" or next(settings.snapshot_dir.glob(PLACED), None) is None:
        return None
    with _disk_errors_named(settings.snapshot_dir):
        identity = identity_of(settings)
        key = Files.of(settings).key(identity, settings.snapshot_dir, read_forget_list(settings.forget_list))
        try:
            snapshot = open_snapshot(settings.snapshot_dir / key)
        except SnapshotInvalid:
            return None
        refuse(settings, tuple(snapshot.reports.values()))
    remove_outdated(settings.snapshot_dir, identity, snapshot.path, retention)
    return Loaded(snapshot, notes=[f"snapshot {key} is up to date"])


def load(settings: DataSettings, *, progress: bool = False, retention: Retention = ONLY_CURRENT) -> Loaded:
    """The snapshot of the data that the settings name, written now if need be. retention: what of older ones stays on disk.

    Raises SettingsError where it has no folder; DataError; AlignmentError, with the reports, when a split aligns nothing, or
    with strict when rows are dropped.
    """
    settings = replace(settings, snapshot_dir=settings.snapshot_folder())
    with _disk_errors_named(settings.snapshot_dir), gc_paused(), ExitStack() as until_written:
        settings.snapshot_dir.mkdir(parents=True, exist_ok=True)
        find = _find_of_chroma if settings.source_type == "chromadb" else _find_of_files
        forget = read_forget_list(settings.forget_list)
        found = find(settings, identity_of(settings), forget, until_written, progress)
        refuse(settings, found.reports)
        loaded = found.loaded(settings, progress)
    remove_outdated(settings.snapshot_dir, identity_of(settings), loaded.snapshot.path, retention)
    return loaded


@contextmanager
def _disk_errors_named(snapshot_dir: Path) -> Iterator[None]:
    try:
        yield
    except DataError:  # one of them is an OSError, too
        raise
    except OSError as error:
        raise DataError(
            f"{error.filename or snapshot_dir}: {error.strerror or error}; the snapshots are kept in "
            f"{snapshot_dir}: make it writable, free space there, or set --snapshot-dir"
        ) from error


@dataclass(frozen=True)
class _Found:
    """A snapshot that is there, or splits to write one of, under the key whose lock is held.

    check: raises DataError where the files of the source are no longer those of the key.
    """

    key: str
    snapshot: Snapshot | None = None
    splits: Sequence[AlignedSplit] = ()
    source: str = ""
    stale_reason: str | None = None
    notes: list[str] = field(default_factory=list)
    check: Callable[[], None] = lambda: None
    forget: ForgetList = NOTHING

    @property
    def reports(self) -> tuple[AlignmentReport, ...]:
        if self.snapshot is not None:
            return tuple(self.snapshot.reports.values())
        return tuple(split.report for split in self.splits)

    def loaded(self, settings: DataSettings, progress: bool) -> Loaded:
        if self.snapshot is not None:
            return Loaded(self.snapshot, self.stale_reason, self.notes)
        try:
            path = self._write(settings, self.splits, progress)
        except UnsoundError:
            tell("aligning")
            splits = judged_again(self.splits)
            refuse(settings, tuple(split.report for split in splits))
            path = self._write(settings, splits, progress)
        return Loaded(open_snapshot(path), notes=[*self.notes, f"wrote snapshot {self.key}"])

    def _write(self, settings: DataSettings, splits: Sequence[AlignedSplit], progress: bool) -> Path:
        remove_leftovers(settings.snapshot_dir, self.key)  # of the attempt before: there may be no room for both
        return write_snapshot(
            settings.snapshot_dir,
            self.key,
            splits,
            source=self.source,
            identity=identity_of(settings),
            progress=progress,
            check=self.check,
            forgotten=self.forget.digest,
        )


def _find_of_files(settings: DataSettings, identity: str, forget: ForgetList, until_written: ExitStack, progress: bool) -> _Found:
    files = Files.of(settings)
    if not any(path for pattern in (PLACED, ".lock-*") for path in settings.snapshot_dir.glob(pattern)):
        # It will have to be read, and nobody else is at it: there is no need to know its hash first.
        until_written.enter_context(reading(settings, columns=source_columns(settings), progress=progress))
    key = files.key(identity, settings.snapshot_dir, forget)
    target = settings.snapshot_dir / key
    notes = []
    try:
        return _Found(key, open_snapshot(target), notes=[f"snapshot {key} is up to date"])
    except SnapshotInvalid as error:
        if target.exists():
            notes.append(f"rebuilding a snapshot: {error}")
    if any(path.is_file() for path in source_files(settings)):  # what is not there is said at once, and nothing else
        tell("waiting for the turn to write")
    until_written.enter_context(writing(settings.snapshot_dir, key))
    try:
        return _Found(key, open_snapshot(target), notes=[f"snapshot {key} was written by another process"])
    except SnapshotInvalid:
        pass
    splits = align_all(settings, progress=progress, forget=forget, unjudged=True)
    notes += _strangers_noted(settings, forget, splits)

    def check() -> None:
        if Files.of(settings) != files:
            first = files.groups[0][0] if len(files.groups[0]) == 1 else settings.source_path
            raise DataError(f"{first} or a CPS table beside it changed while it was read; start again when it is complete")

    check()
    return _Found(key, splits=splits, source=settings.source_type, notes=notes, check=check, forget=forget)


def _strangers_noted(settings: DataSettings, forget: ForgetList, splits: Sequence[AlignedSplit]) -> list[str]:
    """A note for the log, which is no place for the paths themselves."""
    count = len(strangers(forget, splits))
    what = f"{settings.forget_list}: {count} of {len(forget.keys)} listed paths are of no row; cpstream check says which"
    return [what] if count else []


def _find_of_chroma(settings: DataSettings, identity: str, forget: ForgetList, until_written: ExitStack, progress: bool) -> _Found:
    try:
        splits = align_all(settings, progress=progress, forget=forget)
    except SourceUnavailableError as error:
        snapshot = _last_good(settings.snapshot_dir, identity, forget)
        if snapshot is None:
            raise
        stale_reason = f"{error}; serving the snapshot of {snapshot.created_at}"
        return _Found(snapshot.path.name, snapshot, stale_reason=stale_reason, notes=[f"serving the last snapshot: {error}"])
    key = hash_of(identity, _fingerprint_of(splits), [split.report.model_dump(mode="json") for split in splits], *digest_of(forget))
    until_written.enter_context(writing(settings.snapshot_dir, key))
    try:
        return _Found(key, open_snapshot(settings.snapshot_dir / key), notes=[f"snapshot {key} is up to date"])
    except SnapshotInvalid:
        notes = _strangers_noted(settings, forget, splits)
        return _Found(key, splits=splits, source=f"chromadb, collection {settings.collection_name}", notes=notes, forget=forget)


def _fingerprint_of(splits: list[AlignedSplit]) -> str:
    fingerprints = {}
    for split in splits:
        rows = rows_per_chunk(split.dimension)
        gathered = (split.gather(low, low + rows) for low in range(0, len(split), rows))
        shape = (len(split), split.dimension)
        fingerprints[split.name] = split_fingerprint(shape, gathered, split.cps, split.arrow_paths, split.labels)
    return dataset_fingerprint(fingerprints)


def _last_good(snapshot_dir: Path, identity: str, forget: ForgetList) -> Snapshot | None:
    """The newest whole snapshot of the same settings, made by the same forget list: another may hold what is to be forgotten."""
    found = []
    for path in snapshot_dir.glob(PLACED):
        try:
            manifest = read_manifest(path.parent)
        except SnapshotInvalid:
            continue
        if manifest["identity"] == identity and manifest.get("forgotten", "") == forget.digest:
            found.append((os.stat(path).st_mtime_ns, path.parent))
    for _, folder in sorted(found, reverse=True):
        try:
            return open_snapshot(folder)
        except SnapshotInvalid:
            continue
    return None
