"""Whole splits as files."""

from fastapi import Request
from starlette.responses import Response

from cpstream_client.contract import wire
from cpstream_client.contract.wire import ErrorCode

from ...snapshot import parquet
from ..description import CACHED, CURRENT, named, problem_replies
from ..files import file_reply
from ..negotiation import etag_of, not_modified
from ..parameters import PinnedParameters
from ..state import CurrentService
from .common import COMMON, Pinned, SplitName, v1_router

_OF_FILES = (*CACHED, "Accept-Ranges", "Content-Disposition")

_OF_STREAMS = (ErrorCode.RANGE_NOT_SATISFIABLE, ErrorCode.TOO_MANY_STREAMS, ErrorCode.TOO_MANY_BYTES, ErrorCode.OVERLOADED)

router = v1_router()


async def _download(split: str, name: str, request: Request, service: CurrentService, parameters: PinnedParameters) -> Response:
    version, served = service.versions.find(split, parameters.fingerprint)
    etag = etag_of(served.fingerprint, name, parquet.MADE_BY if name == parquet.NAME else {})
    reply = not_modified(request, etag)
    if reply is None:
        file = await version.downloads.get(served, name)
        reply = file_reply(request, service.batch_server, file, filename=f"{split}-{name}", etag=etag)
    return reply


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
    parquet.NAME,
    "The whole split, as Parquet",
    "index, file_path, cps, further labels and embedding, in index order; made when it is first asked for. The same bytes from "
    "every replica of one version of this software, of which the ETag is a hash, too.",
    wire.PARQUET,
    ErrorCode.STORAGE_FAILED,
)
