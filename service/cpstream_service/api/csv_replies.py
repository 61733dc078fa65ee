"""Rows as CSV, for spreadsheets and whoever has no better reader: any number of them, made a piece at a time."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
from anyio import to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cpstream_client.contract.plan import Indices
from cpstream_client.contract.wire import CSV

from ..batches.paths import paths_at
from ..batches.server import BatchServer
from ..snapshot.store import Split
from ..text import harmless

_ROWS = 2048


def csv_rows(split: Split, indices: Indices) -> bytes:
    """Lines of index, file_path, cps and the further labels. Numbers are the shortest that are the same float32."""
    columns = [[harmless(path) for path in paths_at(split.file_paths, indices).to_pylist()]]
    for values in (split.cps, *split.labels.values()):
        columns.append([str(value) if value == value else "" for value in np.asarray(values)[indices]])
    text = io.StringIO()
    csv.writer(text).writerows(zip(indices.tolist(), *columns, strict=True))
    return text.getvalue().encode()


class TableReply(StreamingResponse):
    """Counts as a stream, and takes turns with the others. Raises as BatchServer.stream, before anything is sent.

    pieces: what makes each piece, in a thread.
    """

    def __init__(
        self, server: BatchServer, pieces: Iterable[Callable[[], bytes]], headers: Mapping[str, str], client: str, media_type: str
    ) -> None:
        parameters = "; charset=utf-8; header=present" if media_type == CSV else ""
        super().__init__(_made(server, pieces, client), 200, headers, f"{media_type}{parameters}")
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._server.stream(scope["state"]["client"], scope["state"]["max_streams"]):
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                await super().__call__(scope, receive, send)


async def _made(server: BatchServer, pieces: Iterable[Callable[[], bytes]], client: str) -> AsyncIterator[bytes]:
    for make in pieces:
        piece = await to_thread.run_sync(make)
        await server.turn(client)
        if piece:
            yield piece


class CsvReply(TableReply):
    """Samples of a split."""

    def __init__(self, server: BatchServer, split: Split, indices: Indices, headers: Mapping[str, str], client: str) -> None:
        super().__init__(server, _pieces(split, indices), headers, client, CSV)


def _pieces(split: Split, indices: Indices) -> Iterator[Callable[[], bytes]]:
    header = io.StringIO()
    csv.writer(header).writerow(["index", "file_path", "cps", *split.labels])
    yield header.getvalue().encode
    for low in range(0, len(indices), _ROWS):
        yield partial(csv_rows, split, indices[low : low + _ROWS])
