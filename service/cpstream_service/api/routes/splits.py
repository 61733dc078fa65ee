"""What is served about splits: metadata, and how the two sides were matched."""

from fastapi import Request
from starlette.responses import Response

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.wire import ErrorCode

from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..json_replies import ReadableJson
from ..negotiation import caching, etag_of, not_modified, target_of
from ..state import CurrentService
from .common import COMMON, NoParameters, Pinned, SplitName, v1_router

DEFAULT_LENGTH = 100

router = v1_router()


@router.get(
    "/splits",
    tags=["splits"],
    summary="All splits",
    responses={
        200: {"model": bodies.SplitList, **named(*CACHED, *OF_JSON)},
        304: CURRENT | named(*CACHED),
        **problem_replies(ErrorCode.INVALID_PARAMETER, ErrorCode.RELOADING),
    },
)
async def splits(request: Request, service: CurrentService, _: NoParameters) -> Response:
    """Every split's metadata, and the fingerprint of the whole dataset."""
    current = service.versions.whole
    fingerprint = current.snapshot.fingerprint
    return _metadata(request, fingerprint, bodies.SplitList(fingerprint=fingerprint, splits=tuple(current.infos.values())))


@router.get(
    "/splits/{split:name}",
    tags=["splits"],
    summary="One split",
    responses={
        200: {"model": bodies.SplitInfo, **named(*CACHED, *OF_JSON)},
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON),
    },
)
async def one_split(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """Number and dimension of the samples, CPS statistics, fingerprint, source, and how many rows alignment dropped and why."""
    version, served = service.versions.find(split, parameters.fingerprint)
    return _metadata(request, served.fingerprint, version.infos[split])


@router.get(
    "/splits/{split:name}/alignment",
    tags=["splits"],
    summary="How embeddings and CPS were matched",
    responses={
        200: {"model": bodies.AlignmentReport, **named(*CACHED, *OF_JSON)},
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON),
    },
)
async def alignment(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """Every reason for which rows were dropped, with its count and the first examples; and paths that another split holds too."""
    served = service.split(split, parameters.fingerprint)
    return _metadata(request, served.fingerprint, served.report)


def _metadata(request: Request, fingerprint: str, body: bodies.Body) -> Response:
    # Of the body: versions with the same samples may differ in what was dropped, and services in their limits.
    etag = etag_of(fingerprint, wire.JSON, {"path": target_of(request.scope), "body": body.model_dump_json()})
    return not_modified(request, etag) or ReadableJson(body, headers={"ETag": etag, **caching(request)})
