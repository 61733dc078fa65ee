"""What a snapshot is made from: the settings that shape it, and the files that hold the data, by their content."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..align.forget import NOTHING, ForgetList
from ..settings import DataSettings
from ..sources.chroma.address import server_url
from ..sources.read import source_files
from ..sources.tables import TablePaths
from .fingerprint import HEX_DIGITS, file_hash
from .store import FORMAT

_SETTLED_S = 2.0


def hash_of(*parts: object) -> str:
    """Hash of what JSON can hold."""
    return blake3(json.dumps(parts).encode()).hexdigest()[:HEX_DIGITS]


def digest_of(forget: ForgetList) -> tuple[str, ...]:
    """What a forget list adds to the key of a snapshot: nothing where it is empty, as without one."""
    return (forget.digest,) if forget.digest else ()


def identity_of(settings: DataSettings) -> str:
    """Hash of the settings that say which data it is and that shape it.

    Not of the forget list: what was written before there was one is of the same data, and outdated.
    """
    source_path = settings.source_path
    return hash_of(
        FORMAT,
        settings.source_type,
        str(source_path.resolve()) if source_path else None,
        (server_url(settings), settings.chroma_tenant, settings.chroma_database, settings.collection_name)
        if settings.source_type == "chromadb"
        else None,
        str(Path(TablePaths.of(settings).template).resolve()),
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


@dataclass(frozen=True, slots=True)
class Files:
    """The files that shape the data, as far as they exist: those of the source, and each CPS table. stats: as they were found."""

    groups: tuple[tuple[Path, ...], ...]
    stats: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(cls, settings: DataSettings) -> "Files":
        """Raises DataError where there are none."""
        return cls.found([source_files(settings), *([path] for path in _tables(settings))])

    @classmethod
    def found(cls, groups: Sequence[Sequence[Path]]) -> "Files":
        there = (tuple(path for path in group if path.is_file()) for group in groups)
        kept = tuple(group for group in there if group)
        return cls(kept, tuple(tuple(_stat(path) for path in group) for group in kept))

    def key(self, identity: str, snapshot_dir: Path, forget: ForgetList = NOTHING) -> str:
        """Hash of their content and names, of the settings, and of what of them is to be forgotten."""
        hashes = [_content_hash(group, snapshot_dir) for group in self.groups]
        return hash_of(identity, hashes, [str(path) for group in self.groups for path in group], *digest_of(forget))


def seen_of(settings: DataSettings) -> str:
    """What shows that the source has changed: a hash of its files' names, sizes and times, or of the ids of a Chroma server's.

    Raises DataError where there are none, or it cannot be reached.
    """
    ids: list[str] = []
    if settings.source_type != "chromadb":
        files = Files.of(settings)
    else:
        folder: Sequence[Path] = ()
        if server_url(settings) is not None:
            from ..sources.chroma.read import listed_ids

            ids = listed_ids(settings)
        elif settings.source_path is not None:
            folder = sorted(settings.source_path.rglob("*"))
        files = Files.found([folder, *([path] for path in _tables(settings))])
    try:
        forget = [] if settings.forget_list is None else [_stat(settings.forget_list)]
    except OSError:
        forget = []
    return hash_of(ids, [[str(path) for path in group] for group in files.groups], files.stats, forget)


def _tables(settings: DataSettings) -> list[Path]:
    """The CPS tables, whether or not they are there."""
    tables = TablePaths.of(settings)
    if settings.cps_from == "source":
        return []
    if settings.splits:
        return [tables.of_split(split) for split in settings.splits]
    return [Path(tables.template)] if tables.one_for_all else list(tables.there().values())


def _stat(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns, status.st_ctime_ns


def _content_hash(files: tuple[Path, ...], snapshot_dir: Path) -> str:
    """Hash of the content of files, remembered with their sizes, inodes and times so that unchanged files are not read again.

    Safe because the kernel sets the ctime at every change and no program can set it back. A change within the clock's tick would
    not show, so a file that changed in the last seconds is not remembered.
    """
    memory = snapshot_dir / f".content-{hash_of(*(str(path.resolve()) for path in files))}.json"
    stats = [_stat(path) for path in files]
    stat: Any = list(stats[0]) if len(stats) == 1 else hash_of(stats)
    try:
        remembered = json.loads(memory.read_bytes())
        if remembered["stat"] == stat:
            return str(remembered["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    hashes = [file_hash(path) for path in files]
    content = hashes[0] if len(hashes) == 1 else hash_of(*hashes)
    if time.time() - max(max(each[3:]) for each in stats) / 1e9 > _SETTLED_S and [_stat(path) for path in files] == stats:
        temporary = memory.with_suffix(f".{secrets.token_hex(4)}.tmp")
        temporary.write_text(json.dumps({"file": str(files[0]), "stat": stat, "hash": content}))
        temporary.replace(memory)
    return content
