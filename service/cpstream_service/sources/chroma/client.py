"""A Chroma client, of a server or of a folder."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import chromadb
import httpx
from chromadb.api import ClientAPI
from chromadb.config import Settings
from chromadb.errors import NotFoundError

from ...errors import DataError
from ...settings import DataSettings
from .address import Server, address, server_of
from .contact import first_contact
from .failures import errors_named
from .folder import database_folder, scratch_copy

_REQUEST_TIMEOUT_S = 120.0


@contextmanager
def open_client(settings: DataSettings, *, create: bool = False) -> Iterator[ClientAPI]:
    """A client of the settings' server, or of a copy of their folder, made for this client.

    create: of the folder itself, to write into it; a database is made where it holds none.
    """
    server = server_of(settings)
    if server is not None:
        first_contact(server, settings)
        with _closing(_connect(server, settings)) as client:
            yield client
        return
    folder = database_folder(settings.source_path, create=create)
    if create:
        with _closing(_open(str(folder), settings)) as client:
            yield client
        return
    with scratch_copy(folder, settings) as copy, _closing(_open(str(copy), settings)) as client:
        yield client


def existing_collection(client: ClientAPI, settings: DataSettings) -> chromadb.Collection:
    """The collection of the settings; DataError, with those that exist, if there is none."""
    with errors_named(settings):
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


def _connect(server: Server, settings: DataSettings) -> ClientAPI:
    options = Settings(anonymized_telemetry=False, chroma_server_ssl_verify=str(server.ca_file) if server.ca_file else None)
    with errors_named(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # httpx's, of a CA file by its name: chromadb takes nothing else
        client = chromadb.HttpClient(
            host=server.url,
            headers=dict(server.headers),
            settings=options,
            tenant=settings.chroma_tenant,
            database=settings.chroma_database,
        )
    for session in _sessions_of(client):
        session.timeout = httpx.Timeout(_REQUEST_TIMEOUT_S)
    return client


def _open(path: str, settings: DataSettings) -> ClientAPI:
    with errors_named(settings):
        return chromadb.PersistentClient(
            path=path,
            settings=Settings(anonymized_telemetry=False),
            tenant=settings.chroma_tenant,
            database=settings.chroma_database,
        )


@contextmanager
def _closing(client: ClientAPI) -> Iterator[ClientAPI]:
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
