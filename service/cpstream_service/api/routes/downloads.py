"""Whole splits as files."""

from collections.abc import Mapping

from fastapi import Request
from starlette.responses import Response

from cpstream_client.contract import wire
from cpstream_client.contract.wire import ErrorCode

from ...snapshot import dropped, parquet
from ..description import CACHED, CURRENT, named, problem_replies
from ..files import file_reply
from ..negotiation import etag_of, not_modified
from ..parameters import PinnedParameters
from ..state import CurrentService
from ..versions import Version
from .common import COMMON, Pinned, SplitName, v1_router

_OF_FILES = (*CACHED, "Accept-Ranges", "Content-Disposition")

_OF_STREAMS = (ErrorCode.RANGE_NOT_SATISFIABLE, ErrorCode.TOO_MANY_STREAMS, ErrorCode.TOO_MANY_BYTES, ErrorCode.OVERLOADED)

router = v1_router()


async def _download(split: str, name: str, request: Request, service: CurrentService, parameters: PinnedParameters) -> Response:
    version, served = service.versions.find(split, parameters.fingerprint)
    etag = etag_of(served.fingerprint, name, _further(name, version))
    reply = not_modified(request, etag)
    if reply is None:
        file = await version.downloads.get(served, name)
        reply = file_reply(request, service.batch_server, file, filename=f"{split}-{name}", etag=etag)
    return reply


def _further(name: str, version: Version) -> Mapping[str, object]:
    """What a file depends on beside the fingerprint of its split."""
    if name == parquet.NAME:
        return parquet.MADE_BY
    return {"version": version.key} if name == dropped.NAME else {}


def _add_download(name: str, summary: str, description: str, media_type: str, *errors: ErrorCode) -> None:
    async def download(
        split: SplitName,
        request: Request,
        service: CurrentService,
        parameters: Pinned,
    ) -> Response:
        return await _download(split, name, request, service, parameters)

    part = {
        "description": "The bytes that a `Range` header asks for.",
        "content": {media_type: {}},
        **named(*_OF_FILES, "Content-Range"),
    }
    path = f"/splits/{{split:name}}/{name}"
    router.get(
        path,
        tags=["downloads"],
        summary=summary,
        description=description + " Takes `Range` (one range) and `If-Range`, `If-None-Match`, and `HEAD`.",
        operation_id=f"download_{name.replace('.', '_')}",
        response_class=Response,
        responses={
            200: {"description": "The whole file.", "content": {media_type: {}}, **named(*_OF_FILES)},
            206: part,
            304: CURRENT | named(*CACHED),
            **problem_replies(*COMMON, *_OF_STREAMS, *errors),
        },
    )(download)


_add_download("embeddings.npy", "All embeddings", "(N, D) float32 in index order; `numpy.load` reads it.", wire.OCTET_STREAM)
_add_download("cps.npy", "All speech rates", "(N,) float32 in index order; `numpy.load` reads it.", wire.OCTET_STREAM)
_add_download("file_paths.json", "All file paths", "A JSON list of N strings in index order.", wire.JSON)
_add_download(
    dropped.NAME,
    "Every row that alignment left out",
    "side (`embedding` or `cps`), reason, file_path, where (the row or line) and detail; a cell that a spreadsheet takes for a "
    "formula begins with an apostrophe. What is to be forgotten is not listed.",
    wire.CSV,
    ErrorCode.NOT_FOUND,
)
_add_download(
    parquet.NAME,
    "The whole split, as Parquet",
    "index, file_path, cps, further labels and embedding, in index order; made when it is first asked for. The same bytes from "
    "every replica of one version of this software, of which the ETag is a hash, too.",
    wire.PARQUET,
    ErrorCode.STORAGE_FAILED,
)
