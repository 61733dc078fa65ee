"""Whole files over HTTP: a split's arrays as the snapshot has them on disk, and its file paths as JSON, with byte ranges.

Not by Starlette's FileResponse: it answers bad ranges in plain text, opens a path for each reply, and dates what is no function of
the URL. A subclass that mends this has 22 lines, three of Starlette's private names, and no way to send the list of paths, against
33 lines here. The files are opened once, so that a snapshot that is removed from disk under a running service can still be
downloaded from it.
"""

import asyncio
import json
import logging
import os
import re
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cpstream_client.contract import wire

from ..batches.server import BatchServer
from ..errors import NotFound, RangeNotSatisfiable, StorageFailed, shown
from ..snapshot import dropped, parquet
from ..snapshot.parquet import open_parquet
from ..snapshot.store import Snapshot, Split
from ..sources.rows import Reason
from .negotiation import caching
from .outlet import Outlet

logger = logging.getLogger("cpstream.service")

PIECE_BYTES = 1024**2
_NO_FILENAME = re.compile(r'[/\\"%<>:|?*\x00-\x1f\x7f-\x9f]')
"""What no file may be called on some system, and what would end the header's quotes."""
_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class File:
    """Something to download. read: (offset, length) -> bytes, called in a worker thread."""

    size: int
    media_type: str
    read: Callable[[int, int], bytes]


class Downloads:
    """The files of all splits of one snapshot, by (split, file name). Each is closed when nothing refers to it any more."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._files: dict[tuple[str, str], File] = {}
        self._making: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        for split in snapshot.splits.values():
            for name in ("embeddings.npy", "cps.npy"):
                descriptor = os.open(split.path / name, os.O_RDONLY | os.O_CLOEXEC)
                self._files[split.name, name] = _opened(descriptor, wire.OCTET_STREAM)
            if (split.path / dropped.NAME).exists():
                descriptor = os.open(split.path / dropped.NAME, os.O_RDONLY | os.O_CLOEXEC)
                self._files[split.name, dropped.NAME] = _opened(descriptor, wire.CSV)

    async def get(self, split: Split, name: str) -> File:
        """One of embeddings.npy, cps.npy and dropped.csv, or of those that are made at first use: file_paths.json, data.parquet.

        Raises StorageFailed where there is no room for it, NotFound where an older release wrote the snapshot without it.
        """
        key = split.name, name
        if key not in self._files:
            async with self._making[key]:  # once, whoever asks meanwhile
                if key not in self._files:
                    self._files[key] = await to_thread.run_sync(_MADE[name], split)
        return self._files[key]


class _Opened:
    """A file that is open for as long as this is referred to: a reply that is being sent outlives the version that it is of."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


def _opened(descriptor: int, media_type: str) -> File:
    return File(os.fstat(descriptor).st_size, media_type, _Opened(descriptor).read)


def _slice(body: bytes, offset: int, length: int) -> bytes:
    return body[offset : offset + length]


def _paths(split: Split) -> File:
    """A JSON list in index order, one path a line, so that less and grep can be used on it."""
    body = ("[\n" + ",\n".join(json.dumps(path, ensure_ascii=False) for path in split.file_paths.to_pylist()) + "\n]\n").encode()
    return File(len(body), wire.JSON, partial(_slice, body))


def _parquet(split: Split) -> File:
    try:
        return _opened(open_parquet(split), wire.PARQUET)
    except OSError as error:
        logger.error("cannot make the Parquet file of split %r: %s", split.name, error)
        raise StorageFailed(
            "the service has no room for the Parquet file of this split; its log says where; take embeddings.npy, or ask later"
        ) from error


def _nothing_dropped(split: Split) -> File:
    if any(entry.reason != Reason.FORGOTTEN.code for entry in split.report.dropped):
        raise NotFound(
            f"what was left out of split {shown(split.name)} was not kept by the release that wrote its snapshot; "
            "remove that, or see the first of each reason: alignment"
        )
    header = dropped.table([dropped.COLUMNS])
    return File(len(header), wire.CSV, partial(_slice, header))


_MADE = {"file_paths.json": _paths, parquet.NAME: _parquet, dropped.NAME: _nothing_dropped}


def byte_range(headers: Mapping[str, str], size: int, etag: str) -> range | None:
    """The bytes that the Range header asks for; None for the whole file. Raises RangeNotSatisfiable.

    As RFC 9110 allows, a header that is malformed, names several ranges, or whose If-Range is of other data, is ignored.
    """
    asked = _ONE_RANGE.fullmatch(headers.get("range", ""))
    if asked is None or headers.get("if-range", etag) != etag:
        return None
    first, last, suffix = asked.groups()
    start = max(size - int(suffix), 0) if suffix else int(first)
    stop = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    if start >= size or (suffix and not int(suffix)):
        raise RangeNotSatisfiable(
            f"Range is {headers['range']!r}, and the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return range(start, stop)


def file_reply(request: Request, server: BatchServer, file: File, *, filename: str, etag: str) -> StreamingResponse:
    """The file, or the part of it that the request asks for: a Range has no meaning for HEAD, as RFC 9110 says."""
    part = byte_range(request.headers, file.size, etag) if request.method == "GET" else None
    whole = part is None
    part = range(file.size) if part is None else part
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": attachment(filename),
        "Content-Length": str(len(part)),
        "ETag": etag,
        **caching(request),
    }
    if not whole:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.size}"
    sent = part if request.method == "GET" else part[:0]
    return _Download(server, file, sent, status_code=200 if whole else 206, headers=headers, media_type=file.media_type)


class _Download(StreamingResponse):
    """Counts as a stream, and takes turns with the others. Raises as BatchServer.stream, before anything is sent."""

    def __init__(self, server: BatchServer, file: File, part: range, **reply: Any) -> None:
        super().__init__((), **reply)
        self._server, self._file, self._part = server, file, part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body_iterator = self._pieces(Outlet(self._server, scope, send))
        with self._server.stream(scope["state"]["client"], scope["state"]["max_streams"]):
            await super().__call__(scope, receive, send)

    async def _pieces(self, outlet: Outlet) -> AsyncIterator[bytes]:
        at, stop = self._part.start, self._part.stop
        while at < stop:
            nbytes = min(PIECE_BYTES, stop - at, outlet.most())
            piece = await to_thread.run_sync(self._file.read, at, nbytes)
            await self._server.turn(outlet.client)
            yield piece
            del piece
            outlet.sent(nbytes)
            at += nbytes
            if at < stop:
                await outlet.room()


def attachment(filename: str) -> str:
    """Content-Disposition of RFC 6266: a name of other scripts is sent as RFC 8187 encodes it, beside one for old clients."""
    filename = _NO_FILENAME.sub("_", filename)
    plain = filename.encode("ascii", "replace").decode().replace("?", "_")
    encoded = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{encoded}'
