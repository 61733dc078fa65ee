"""A Chroma folder, read from a copy.

chromadb writes into a folder whenever it opens one, even where it then only reads (seen with 1.5.9), wants it writable, and
migrates one of an older chromadb so that the older cannot open it any more. The copy is made while nothing writes to the folder,
and removed after.
"""

import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cpstream_client.files import lock, no_follow

from ...errors import DataError, MissingFileError, SourceUnavailableError
from ...settings import DataSettings

DATABASE_FILE = "chroma.sqlite3"
TRIES = 3
PAUSE_S = 1.0
"""Between tries beside a busy writer."""
_DATABASE_FILES = (DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-journal")
_INDEX_FILES = ("index_metadata.pickle", "header.bin", "data_level0.bin", "length.bin", "link_lists.bin")
_PREFIX = ".chroma-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ELSEWHERE = "set --snapshot-dir to a folder on a local disk"
_SEGMENTS = """
    SELECT s.id, EXISTS(SELECT * FROM max_seq_id m WHERE m.segment_id = s.id)
    FROM segments s JOIN collections c ON s.collection = c.id WHERE c.name = ? AND s.scope = 'VECTOR'
"""


def database_folder(path: Path | None, *, create: bool) -> Path:
    """The folder of the settings. Raises DataError when it holds no database; not so with create."""
    if path is None:
        raise DataError(
            "no Chroma database named: set --source-path (CPSTREAM_SOURCE_PATH) to its folder, or --chroma-url to its server"
        )
    if not create and not (path / DATABASE_FILE).is_file():  # PersistentClient would make an empty one
        fault = "there is no such folder" if not path.is_dir() else f"the folder holds no Chroma database ({DATABASE_FILE})"
        raise MissingFileError(f"{path}: {fault}; set --source-path to the folder of one, or make it: cpstream ingest")
    return path


@contextmanager
def scratch_copy(folder: Path, settings: DataSettings) -> Iterator[Path]:
    """A copy of what the collection of the settings needs of the folder, beside the snapshots.

    Raises SourceUnavailableError when the folder changes at every try; DataError when it cannot be copied, or index files are
    missing.
    """
    parent = settings.snapshot_folder()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        whole = os.open(parent, _FOLDER)
        try:
            lock(whole, fcntl.LOCK_EX, parent, _ELSEWHERE)
            _remove_leftovers(parent)
            scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            held = os.open(scratch, _FOLDER)
            lock(held, fcntl.LOCK_EX, scratch, _ELSEWHERE)
        finally:
            os.close(whole)
    except OSError as error:
        raise _no_room(folder, parent, error) from None
    try:
        yield _unchanged_copy(folder, scratch, settings.collection_name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def _unchanged_copy(folder: Path, scratch: Path, collection: str) -> Path:
    for tried in range(TRIES):
        if tried:
            time.sleep(PAUSE_S)
        copy = scratch / str(tried)
        before = _state(folder)
        fault = None
        try:
            copy.mkdir()
            _copy(folder, copy, collection)
        except (DataError, FileNotFoundError) as error:  # may be so because something writes to the folder
            fault = error
        except OSError as error:
            raise _no_room(folder, scratch.parent, error) from None
        if _state(folder) == before:
            if isinstance(fault, OSError):
                raise DataError(f"{fault.filename}: {fault.strerror}; {_REMEDY}")
            if fault is not None:
                raise fault
            return copy
        shutil.rmtree(copy)
    raise SourceUnavailableError(f"{folder}: it changed while it was read; start again after the writing ({TRIES} tries)")


_REMEDY = "copy the database's folder again, whole, with its subfolders, or fill another: cpstream ingest"


def _copy(folder: Path, copy: Path, collection: str) -> None:
    for name in _DATABASE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, copy / name)
    for segment, is_recorded in _segments(folder, copy, collection):
        files = {name for name in _INDEX_FILES if (folder / segment / name).is_file()}
        missing = [name for name in _INDEX_FILES if name not in files]
        # Before it is first written out, an index is kept in the database itself.
        if missing and (is_recorded or _INDEX_FILES[0] in files):
            raise DataError(
                f"{folder}: the index of collection {collection!r} is not whole: {segment}/{missing[0]} is missing; {_REMEDY}"
            )
        if files:
            (copy / segment).mkdir()
        for name in files:
            shutil.copyfile(folder / segment / name, copy / segment / name)


def _segments(folder: Path, copy: Path, collection: str) -> list[tuple[str, bool]]:
    """The vector indices of collections of that name, and whether the database counts on their files."""
    try:
        with closing(sqlite3.connect(copy / DATABASE_FILE)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= {"segments", "collections", "max_seq_id"}:
                return []  # Chroma will say what it thinks of it
            return [(str(segment), bool(recorded)) for segment, recorded in database.execute(_SEGMENTS, (collection,))]
    except sqlite3.Error as error:
        raise DataError(f"{folder / DATABASE_FILE}: the database is damaged ({error}); {_REMEDY}") from None


def _state(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """Every file below the folder, with what changes when it is written."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            found.append((path, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    return sorted(found)


def _no_room(folder: Path, parent: Path, error: OSError) -> DataError:
    return DataError(
        f"{error.filename or folder}: {error.strerror or error}; {folder} is read from a copy in {parent}: "
        "make the one readable and the other writable, free space there, or set --snapshot-dir"
    )


def _remove_leftovers(parent: Path) -> None:
    """Copies of processes that were killed: nobody holds their lock."""
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            held = no_follow(str(path), _FOLDER)
        except OSError:  # a link or a file, which is none of ours
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)
