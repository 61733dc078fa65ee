"""The records of a collection, all of them, whatever a server gives at a time.

A server may answer with fewer records than asked for, or refuse to give so many at once: Chroma Cloud gives 300. So what came
counts, never what was asked for, and a list ends where a page is empty.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import chromadb
import httpx
import numpy as np
import numpy.typing as npt

from .failures import Changed, may_pass, status_of

T = TypeVar("T")
Metadata = Mapping[str, Any] | None

SERVER_REQUESTS = 2
"""Requests to a server at once: one prepares a page while the other is decoded here, 1.5 times as fast; more gain nothing."""
PAGE_ROWS = 2000
"""Rows of a request: 1000 to 5000 measure alike, fewer and more are slower, and from 32 766 on SQLite refuses."""
LEAST_ROWS = 300
"""What is asked for where more is refused: what Chroma Cloud allows."""
TRIES = 3
PAUSE_S = 1.0
TOO_MUCH = (400, 413, 422)


@dataclass(frozen=True, slots=True)
class Page:
    """Some records. embeddings (B, D) float32."""

    ids: list[str]
    metadatas: list[Metadata]
    embeddings: npt.NDArray[np.float32]


class Pages:
    """A collection, page by page. is_server: ask ahead, and again where a fault may pass."""

    def __init__(self, collection: chromadb.Collection, *, is_server: bool) -> None:
        self._collection, self._rows, self.is_server = collection, PAGE_ROWS, is_server
        self._num_requests, self._tries = (SERVER_REQUESTS, TRIES) if is_server else (1, 1)

    def count(self) -> int:
        return self._tried(self._collection.count)

    def listed(self, value_of: Callable[[Metadata], T] | None = None, where: dict[str, Any] | None = None) -> dict[str, T | None]:
        """Every id, with a value of its metadata. Raises Changed when a page holds what an earlier one held."""
        listed: dict[str, T | None] = {}
        offset = 0
        while True:
            got = self._get([] if value_of is None else ["metadatas"], offset=offset, where=where)
            if not got["ids"]:
                return listed
            offset += len(got["ids"])
            values = [None] * len(got["ids"]) if value_of is None else map(value_of, got["metadatas"] or [])
            listed.update(zip(got["ids"], values, strict=True))
            if len(listed) < offset:
                raise Changed

    def records(self, ids: Sequence[str]) -> Iterator[Page]:
        """The records of these ids, in their order as far as a page comes whole. Raises Changed when one is not there."""
        pieces = iter([ids[low : low + PAGE_ROWS] for low in range(0, len(ids), PAGE_ROWS)])
        with ThreadPoolExecutor(self._num_requests) as pool:
            ahead = deque(pool.submit(self._records, piece) for piece in islice(pieces, self._num_requests))
            while ahead:
                yield from ahead.popleft().result()
                ahead.extend(pool.submit(self._records, piece) for piece in islice(pieces, 1))

    def there(self, ids: Sequence[str]) -> list[Page]:
        """Those of these ids that there are."""
        return self._records(ids, partly=True)

    def _records(self, ids: Sequence[str], *, partly: bool = False) -> list[Page]:
        pages: list[Page] = []
        place = {key: i for i, key in enumerate(ids)}
        while place:
            got = self._get(["metadatas", "embeddings"], ids=list(place))
            rows = [i for _, i in sorted((place.pop(key), i) for i, key in enumerate(got["ids"]) if key in place)]
            metadatas, vectors = got["metadatas"], got["embeddings"]
            if not rows and partly:
                break
            if not rows or metadatas is None or vectors is None or not len(vectors) == len(metadatas) == len(got["ids"]):
                raise Changed
            if place and not partly:
                self._rows = min(self._rows, len(rows))  # a cap: ask for no more at a time
            with np.errstate(over="ignore"):
                embeddings = np.asarray(vectors, np.float32)
            if rows != list(range(len(embeddings))):  # Chroma answers in an order of its own
                embeddings = embeddings[rows]
            pages.append(Page([got["ids"][i] for i in rows], [metadatas[i] for i in rows], embeddings))
        return pages

    def _get(
        self, include: list[str], *, offset: int = 0, where: dict[str, Any] | None = None, ids: list[str] | None = None
    ) -> chromadb.GetResult:
        """One page: records from `offset` on, or as many of the ids as come at once."""

        def get() -> chromadb.GetResult:
            some = None if ids is None else ids[:rows]
            limit = rows if some is None else len(some)
            return self._collection.get(ids=some, where=where, limit=limit, offset=offset, include=include)  # type: ignore[arg-type]

        while True:
            rows = self._rows
            try:
                return self._tried(get)
            except Exception as error:
                if rows <= LEAST_ROWS or status_of(error) not in TOO_MUCH:
                    raise
                self._rows = min(self._rows, LEAST_ROWS)

    def _tried(self, ask: Callable[[], T]) -> T:
        """Ask, and again where that may help: who reads thousands of pages meets every fault that passes."""
        for tries_left in range(self._tries - 1, -1, -1):
            try:
                return ask()
            except Exception as error:
                status = status_of(error)
                if not tries_left or not (isinstance(error, httpx.TransportError) or (status is not None and may_pass(status))):
                    raise
                time.sleep(PAUSE_S)
        raise AssertionError("there is a last try")
