"""Embeddings from a Chroma collection.

A record belongs to a split by its metadata {"split": ..., "file_path": ...}. A collection is read whole or not at all: its ids
are listed before and after, and these are what is read. A record that is replaced meanwhile is the old one or the new one.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ...errors import DataError, SourceUnavailableError
from ...progress import Bar
from ...settings import DataSettings
from ..rows import Reason, RowProblem, SourceSplit, common_dimension, path_problem
from . import pages
from .address import address, server_url
from .client import existing_collection, open_client
from .failures import Changed, errors_named
from .pages import Metadata, Page, Pages


def read_chroma(settings: DataSettings, columns: Sequence[str] = (), *, progress: bool = False) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all that the records name. Records of no split are problems of the first.
    columns: further metadata to keep of each record.

    Raises SourceUnavailableError when the server cannot be reached, or the collection changed at every try; DataError when the
    folder holds no database, or there is no such collection or split.
    """
    with open_client(settings) as client:
        for tried in range(pages.TRIES):
            if tried:
                time.sleep(pages.PAUSE_S)
            collection = existing_collection(client, settings)
            try:
                with errors_named(settings):
                    reader = Pages(collection, is_server=server_url(settings) is not None)
                    return _read(reader, settings, columns, progress)
            except Changed:
                pass
    raise SourceUnavailableError(
        f"{address(settings)}: collection {settings.collection_name!r} changed while it was read; start again after the writing "
        f"({pages.TRIES} tries)"
    )


def listed_ids(settings: DataSettings) -> list[str]:
    """The ids of the collection, sorted. Raises as read_chroma."""
    with open_client(settings) as client:
        collection = existing_collection(client, settings)
        with errors_named(settings):
            return sorted(Pages(collection, is_server=True).listed())


def _read(reader: Pages, settings: DataSettings, columns: Sequence[str], progress: bool) -> dict[str, SourceSplit]:
    splits = settings.splits
    before = reader.listed(_split_value if splits else None)
    wanted = [key for key, value in before.items() if value in splits or not _is_split(value)] if splits else list(before)
    if splits:
        _refuse_missing(settings, set(filter(_is_split, before.values())))
    found = {name: _Rows.of(columns) for name in splits}
    of_no_split = []
    with Bar(None, settings.collection_name, len(wanted), unit=" rows", disable=None if progress else True, delay=2) as bar:
        for page in reader.records(wanted):
            for name, rows in _by_split(page.metadatas).items():
                if name is None:
                    of_no_split += [_no_split(page.ids[i], page.metadatas[i]) for i in rows]
                elif splits and name not in splits:
                    raise Changed
                else:
                    found.setdefault(name, _Rows.of(columns)).add(page, rows)
            bar.update(len(page.ids))
    if reader.is_server and (reader.listed().keys() != before.keys() or reader.count() != len(before)):
        raise Changed  # a folder is read from a copy
    _refuse_missing(settings, found)
    next(iter(found.values())).problems.extend(of_no_split)
    return {name: found.pop(name).finish(name) for name in list(found)}


def _refuse_missing(settings: DataSettings, held: Collection[str]) -> None:
    """Raise DataError where the collection has no record of a split that is asked for, or none of any."""
    missing = [split for split in settings.splits if split not in held]
    if held and not missing:
        return
    names = ", ".join(sorted(map(repr, held)))
    raise DataError(
        f"{address(settings)}: collection {settings.collection_name!r} has no record of "
        + (f"split {missing[0]!r}; " if missing else "any split; ")
        + (f"it has: {names}; set --splits to some of those" if names else "its records need metadata 'split'")
    )


def _by_split(metadatas: list[Metadata]) -> dict[str | None, list[int]]:
    """The rows of a page, by the name of their split."""
    rows: dict[str | None, list[int]] = {}
    for i, metadata in enumerate(metadatas):
        value = _split_value(metadata)
        rows.setdefault(value if _is_split(value) else None, []).append(i)
    return rows


def _split_value(metadata: Metadata) -> object:
    return None if metadata is None else metadata.get("split")


def _is_split(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)


def _no_split(key: str, metadata: Metadata) -> RowProblem:
    value = _split_value(metadata)
    if value is None:
        detail = "it has no metadata 'split'"
    else:
        detail = "its metadata 'split' is " + ("empty" if value == "" else f"{type(value).__name__}, not a string")
    file_path = (metadata or {}).get("file_path")
    return RowProblem(Reason.NO_SPLIT, f"record {key!r}", detail, file_path if path_problem(file_path) is None else None)


@dataclass
class _Rows:
    """The rows of one split, page by page."""

    file_paths: list[str] = field(default_factory=list)
    pages: list[npt.NDArray[np.float32]] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: Sequence[str]) -> "_Rows":
        return cls(columns={column: [] for column in columns})

    def add(self, page: Page, rows: list[int]) -> None:
        kept = []
        for i in rows:
            metadata = page.metadatas[i] or {}
            detail = path_problem(metadata.get("file_path")) if "file_path" in metadata else "it has no metadata 'file_path'"
            if detail is None:
                self.file_paths.append(metadata["file_path"])
                kept.append(i)
                for name, column in self.columns.items():
                    column.append(metadata.get(name))
            else:
                self.problems.append(RowProblem(Reason.UNREADABLE_ROW, f"record {page.ids[i]!r}", detail))
        self.pages.append(page.embeddings if len(kept) == len(page.embeddings) else page.embeddings[kept])

    def finish(self, name: str) -> SourceSplit:
        dimension = common_dimension(page.shape[1] for page in self.pages)  # a collection has one
        embeddings = np.concatenate(self.pages) if self.pages else np.empty((0, dimension), np.float32)
        self.pages.clear()
        return SourceSplit(name, self.file_paths, embeddings, self.problems, columns=self.columns)
