"""Fill a Chroma collection."""

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.api import ClientAPI

from ...settings import DataSettings
from .address import server_url
from .failures import errors_named, status_of
from .pages import LEAST_ROWS, TOO_MUCH, Metadata, Pages


class Writer:
    """A collection to be filled. max_rows: of a request; fewer where a server refuses so many."""

    def __init__(self, collection: chromadb.Collection, settings: DataSettings, max_rows: int) -> None:
        self._collection, self._settings, self._max_rows = collection, settings, max_rows
        self._pages = Pages(collection, is_server=server_url(settings) is not None)

    def put(self, ids: list[str], embeddings: npt.NDArray[np.float32], metadatas: list[dict[str, str]]) -> int:
        """Write the records that are not yet there as they should be. (B, D) float32. Returns how many were written."""
        with errors_named(self._settings):
            there: dict[str, tuple[npt.NDArray[np.float32], Metadata]] = {}
            for page in self._pages.there(ids):
                there.update(zip(page.ids, zip(page.embeddings, page.metadatas, strict=True), strict=True))
            new = [i for i, key in enumerate(ids) if key not in there or not _same(there[key], embeddings[i], metadatas[i])]
            left = new
            while left:
                rows = left[: self._max_rows]
                try:
                    self._collection.upsert(
                        ids=[ids[i] for i in rows], embeddings=embeddings[rows], metadatas=[metadatas[i] for i in rows]
                    )
                except Exception as error:
                    if len(rows) <= LEAST_ROWS or status_of(error) not in TOO_MUCH:
                        raise
                    self._max_rows = LEAST_ROWS
                else:
                    left = left[len(rows) :]
        return len(new)

    def count(self, split: str) -> int:
        """Records of a split."""
        with errors_named(self._settings):
            return len(self._pages.listed(where={"split": split}))


def open_collection(client: ClientAPI, settings: DataSettings) -> Writer:
    """The collection of the settings, made if there is none."""
    with errors_named(settings):
        collection = client.get_or_create_collection(settings.collection_name, embedding_function=None)
        return Writer(collection, settings, client.get_max_batch_size())


def _same(record: tuple[npt.NDArray[np.float32], Metadata], embedding: npt.NDArray[np.float32], metadata: dict[str, str]) -> bool:
    vector, known = record
    return known is not None and dict(known) == metadata and np.array_equal(vector, embedding)
