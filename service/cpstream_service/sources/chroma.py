"""Embeddings from a Chroma collection, in a folder or on a server. The only module that imports chromadb.

A record belongs to a split by its metadata {"split": ..., "file_path": ...}. Chroma is paged through once, at the start.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
import numpy.typing as npt
from chromadb.api import ClientAPI
from chromadb.config import Settings
from chromadb.errors import ChromaError, NotFoundError
from tqdm import tqdm

from ..errors import DataError, SourceUnavailableError
from ..settings import DataSettings
from .rows import Reason, RowProblem, SourceSplit, common_dimension, path_problem

PAGE_ROWS = 2000
"""Rows of a request: 1000 to 5000 measure alike, fewer and more are slower, and from 32 766 on SQLite refuses."""
SERVER_REQUESTS = 2
"""Requests to a server at once: one prepares a page while the other is decoded here, 1.5 times as fast; more gain nothing."""
DATABASE_FILE = "chroma.sqlite3"
_FIRST_CONTACT_S = 10.0
_REQUEST_TIMEOUT_S = 120.0


def read_chroma(settings: DataSettings, *, progress: bool = False) -> dict[str, SourceSplit]:
    """Read the splits asked for, or all that the records name.

    Raises SourceUnavailableError when the server cannot be reached, DataError when the folder holds no database, or there is no
    such collection or split.
    """
    with open_client(settings) as client:
        collection = existing_collection(client, settings)
        where = address(settings)
        with _errors_named(where):
            count = collection.count()
            with tqdm(
                None, settings.collection_name, count, unit=" rows", disable=None if progress else True, delay=2
            ) as bar:  # a filter may make it fewer
                reader = _Reader(collection, SERVER_REQUESTS if settings.chroma_host else 1, bar)
                found = _by_split(reader, settings.splits)
            if collection.count() != count:
                raise DataError(f"{where}: collection {settings.collection_name!r} changed while it was read; start again after")
            missing = [split for split in settings.splits if split not in found]
            if missing or not found:
                held = ", ".join(sorted(map(repr, _splits_of(reader))))
                wanted = f"split {missing[0]!r}" if missing else "any split"
                raise DataError(
                    f"{where}: collection {settings.collection_name!r} has no record of {wanted}; "
                    + (f"it has: {held}; set --splits to some of those" if held else "its records need metadata 'split'")
                )
        return {name: found.pop(name).finish(name) for name in list(found)}


# Connection


def address(settings: DataSettings) -> str:
    """Where the database is, for messages."""
    if settings.chroma_host:
        return f"http://{settings.chroma_host}:{settings.chroma_port}"
    return str(settings.source_path)


@contextmanager
def open_client(settings: DataSettings, *, create: bool = False) -> Iterator[ClientAPI]:
    """A client of the settings' server or folder. create: make a database where the folder holds none."""
    options = Settings(anonymized_telemetry=False)
    if settings.chroma_host:
        _first_contact(settings)
        try:
            client = chromadb.HttpClient(host=settings.chroma_host, port=settings.chroma_port, settings=options)
        except ValueError as error:  # whatever it is, chromadb says no more
            raise SourceUnavailableError(f"{address(settings)}: the Chroma server cannot be used ({error})") from None
        for session in _sessions_of(client):
            session.timeout = httpx.Timeout(_REQUEST_TIMEOUT_S)
    else:
        path = _database_folder(settings.source_path, create)
        with _errors_named(str(path)):
            client = chromadb.PersistentClient(path=str(path), settings=options)
    try:
        yield client
    finally:
        for session in _sessions_of(client):
            session.close()
        client.close()  # type: ignore[attr-defined] # of the class behind the protocol that chromadb annotates


def _sessions_of(client: ClientAPI) -> list[httpx.Client]:
    """chromadb gives its HTTP sessions no timeout, has no setting for one, and leaves them open when the client is closed."""
    clients = (client, getattr(client, "_admin_client", None))
    sessions = (getattr(getattr(each, "_server", None), "_session", None) for each in clients)
    return [session for session in sessions if isinstance(session, httpx.Client)]


def _database_folder(path: Path | None, create: bool) -> Path:
    if path is None:
        raise DataError(
            "no Chroma database named: set --source-path (CPSTREAM_SOURCE_PATH) to its folder, or --chroma-host to its server"
        )
    if not create and not (path / DATABASE_FILE).is_file():  # PersistentClient would make an empty one
        fault = "there is no such folder" if not path.is_dir() else f"the folder holds no Chroma database ({DATABASE_FILE})"
        raise DataError(f"{path}: {fault}; set --source-path to the folder of one, or make it: cpstream ingest")
    return path


def _first_contact(settings: DataSettings) -> None:
    where = address(settings)
    remedy = "start it (chroma run), or set --chroma-host and --chroma-port"
    try:
        reply = httpx.get(f"{where}/api/v2/heartbeat", timeout=_FIRST_CONTACT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceUnavailableError(
            f"no Chroma server answers at {where} ({str(error) or type(error).__name__}); {remedy}"
        ) from None
    if reply.status_code != 200 or "heartbeat" not in reply.text:
        raise SourceUnavailableError(f"{where} answers {reply.status_code}, but not as a Chroma server does; {remedy}")


@contextmanager
def _errors_named(where: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise SourceUnavailableError(
            f"{where}: the Chroma server stopped answering ({str(error) or type(error).__name__})"
        ) from None
    except ChromaError as error:
        kind = SourceUnavailableError if error.code() >= 500 else DataError
        raise kind(f"{where}: Chroma answers: {error}") from None


def existing_collection(client: ClientAPI, settings: DataSettings) -> chromadb.Collection:
    """The collection of the settings; DataError, with those that exist, if there is none."""
    with _errors_named(address(settings)):
        try:
            return client.get_collection(settings.collection_name, embedding_function=None)
        except NotFoundError:
            names = sorted(collection.name for collection in client.list_collections())
    raise DataError(
        f"{address(settings)}: there is no collection {settings.collection_name!r}; "
        + (
            f"collections: {', '.join(map(repr, names))}; set --collection-name"
            if names
            else "it is empty; fill it: cpstream ingest"
        )
    )


# Pages


@dataclass(frozen=True, slots=True)
class _Page:
    ids: list[str]
    metadatas: list[Mapping[str, Any] | None]
    embeddings: npt.NDArray[np.float32] | None


class _Reader:
    """Pages of a collection, in its order, some requests ahead."""

    def __init__(self, collection: chromadb.Collection, num_requests: int, bar: "tqdm[Any]") -> None:
        self._collection, self._num_requests, self._bar = collection, num_requests, bar

    def pages(self, split: str | None = None, *, embeddings: bool = True) -> Iterator[_Page]:
        where = None if split is None else {"split": split}
        with ThreadPoolExecutor(self._num_requests) as pool:
            ahead = deque(pool.submit(self._page, where, i * PAGE_ROWS, embeddings) for i in range(self._num_requests))
            offset = self._num_requests * PAGE_ROWS
            while ahead:
                page = ahead.popleft().result()
                if page.ids:
                    if embeddings:
                        self._bar.update(len(page.ids))
                    yield page
                if len(page.ids) == PAGE_ROWS:
                    ahead.append(pool.submit(self._page, where, offset, embeddings))
                    offset += PAGE_ROWS

    def _page(self, where: dict[str, Any] | None, offset: int, embeddings: bool) -> _Page:
        include: Any = ["metadatas", "embeddings"] if embeddings else ["metadatas"]
        got = self._collection.get(where=where, limit=PAGE_ROWS, offset=offset, include=include)
        vectors = got["embeddings"]
        with np.errstate(over="ignore"):
            rows = None if vectors is None or not len(vectors) else np.asarray(vectors, np.float32)
        metadatas: list[Mapping[str, Any] | None] = list(got["metadatas"] or [])
        return _Page(got["ids"], metadatas, rows)


def _by_split(reader: _Reader, splits: tuple[str, ...]) -> dict[str, "_Rows"]:
    found: dict[str, _Rows] = {}
    for split in splits or (None,):
        for page in reader.pages(split):
            if page.embeddings is None:
                continue
            names = [None if metadata is None else metadata.get("split") for metadata in page.metadatas]
            for name in dict.fromkeys(names):
                if isinstance(name, str) and name:
                    found.setdefault(name, _Rows()).add(page, [i for i, other in enumerate(names) if other == name])
    return found


def _splits_of(reader: _Reader) -> set[str]:
    """The splits that the records name."""
    metadatas = (metadata for page in reader.pages(embeddings=False) for metadata in page.metadatas if metadata is not None)
    return {metadata["split"] for metadata in metadatas if isinstance(metadata.get("split"), str)}


@dataclass
class _Rows:
    """The rows of one split, page by page."""

    ids: set[str] = field(default_factory=set)
    file_paths: list[str] = field(default_factory=list)
    pages: list[npt.NDArray[np.float32]] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)

    def add(self, page: _Page, rows: list[int]) -> None:
        kept = []
        for i in rows:
            if page.ids[i] in self.ids:  # pages shift when a record is added meanwhile
                continue
            self.ids.add(page.ids[i])
            metadata = page.metadatas[i] or {}
            detail = path_problem(metadata.get("file_path")) if "file_path" in metadata else "it has no metadata 'file_path'"
            if detail is None:
                self.file_paths.append(metadata["file_path"])
                kept.append(i)
            else:
                self.problems.append(RowProblem(Reason.UNREADABLE_ROW, f"record {page.ids[i]!r}", detail))
        if page.embeddings is not None:
            self.pages.append(page.embeddings if len(kept) == len(page.embeddings) else page.embeddings[kept])

    def finish(self, name: str) -> SourceSplit:
        dimension = common_dimension(page.shape[1] for page in self.pages)  # a collection has one
        embeddings = np.concatenate(self.pages) if self.pages else np.empty((0, dimension), np.float32)
        self.pages.clear()
        return SourceSplit(name, self.file_paths, embeddings, self.problems)


# Writing


class Writer:
    """A collection to be filled."""

    def __init__(self, collection: chromadb.Collection, where: str, max_rows: int) -> None:
        self._collection, self._where, self._max_rows = collection, where, max_rows

    def put(self, ids: list[str], embeddings: npt.NDArray[np.float32], metadatas: list[dict[str, str]]) -> int:
        """Write the records that are not yet there as they should be. (B, D) float32. Returns how many were written."""
        with _errors_named(self._where):
            got = self._collection.get(ids=ids, include=["embeddings", "metadatas"])  # in an order of its own
            there = {}
            if got["ids"] and got["embeddings"] is not None:
                there = dict(zip(got["ids"], zip(got["embeddings"], got["metadatas"] or (), strict=True), strict=True))
            new = [i for i, key in enumerate(ids) if key not in there or not _same(there[key], embeddings[i], metadatas[i])]
            for low in range(0, len(new), self._max_rows):
                rows = new[low : low + self._max_rows]
                self._collection.upsert(
                    ids=[ids[i] for i in rows], embeddings=embeddings[rows], metadatas=[metadatas[i] for i in rows]
                )
        return len(new)

    def count(self, split: str) -> int:
        """Records of a split."""
        with _errors_named(self._where):
            return len(self._collection.get(where={"split": split}, include=[])["ids"])


def open_collection(client: ClientAPI, settings: DataSettings) -> Writer:
    """The collection of the settings, made if there is none."""
    where = address(settings)
    with _errors_named(where):
        collection = client.get_or_create_collection(settings.collection_name, embedding_function=None)
        return Writer(collection, where, client.get_max_batch_size())


def _same(record: tuple[Any, Mapping[str, Any]], embedding: npt.NDArray[np.float32], metadata: dict[str, str]) -> bool:
    vector, known = record
    return dict(known) == metadata and np.array_equal(np.asarray(vector, np.float32), embedding)
