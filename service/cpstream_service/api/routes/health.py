"""Unversioned resources, for orchestrators and monitoring."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.wire import ErrorCode

from ...errors import Draining, NotFound, NotReady
from ..description import OF_JSON, named, problem_replies
from ..json_replies import ReadableJson
from ..problems import MEANINGS, problem_type
from ..rights import NOBODY, needs
from ..routing import Route
from ..state import CurrentService
from .common import NoParameters

router = APIRouter(tags=["health"], route_class=Route)


@router.get(
    "/livez",
    summary="Is the process alive?",
    responses={200: {"model": bodies.Alive, **named(*OF_JSON)}, **problem_replies(ErrorCode.INVALID_PARAMETER)},
)
@needs(None)
async def livez(_: NoParameters) -> Response:
    """Answers as long as the process runs, draining included. Restart it when this fails."""
    return ReadableJson(bodies.Alive(status="alive"))


@router.get(
    "/readyz",
    summary="Should it get requests?",
    responses={
        200: {
            "model": bodies.Ready | bodies.Status,
            **named(*OF_JSON),
            "content": {
                wire.JSON: {
                    "example": {
                        "status": "ready",
                        "fingerprint": "9a1c6f...",
                        "stale_reason": None,
                        "splits": ["dev", "test", "train"],
                    }
                }
            },
        },
        **problem_replies(ErrorCode.NOT_READY, ErrorCode.DRAINING, ErrorCode.INVALID_PARAMETER),
    },
)
@needs(None)
async def readyz(request: Request, service: CurrentService, _: NoParameters) -> Response:
    """200 while the service takes requests; 503 `not-ready` with Retry-After while its first data is being loaded, and how far that
    is; 503 `draining` once it has been told to stop.

    Where tokens are set, all but the `status` is for those who send one.

    `stale_reason` says why the data may be older than its source (Chroma could not be reached at start, and the last good snapshot
    serves); it is null otherwise. `reload_error` says why the last reload failed: the data is served as before.
    """
    if service.drain.draining:
        raise Draining("the service is shutting down; send no new requests here")
    if request.scope["state"]["rights"] is NOBODY:
        if not service.versions.is_ready:
            raise NotReady("the data is being loaded; ask again in a second")
        return ReadableJson(bodies.Status(status="ready"))
    snapshot, stale_reason = service.versions.current.snapshot, service.versions.stale_reason
    last = service.state.last
    ready = bodies.Ready(
        status="ready",
        fingerprint=snapshot.fingerprint,
        stale_reason=stale_reason,
        reload_error=None if last is None else last.error,
        splits=tuple(snapshot.splits),
    )
    return ReadableJson(ready)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Text exposition format. docs/operations.md lists the metrics.", "content": {"text/plain": {}}},
        **problem_replies(ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN, ErrorCode.INVALID_PARAMETER),
    },
)
@needs("metrics")
def metrics(service: CurrentService, _: NoParameters) -> Response:
    """Requests, durations, bytes and samples sent, open streams; of all worker processes together."""
    body, media_type = service.metrics.render()
    return Response(body, media_type=media_type)


@router.get(
    "/problems/{code}",
    summary="What an error code means",
    responses={
        200: {"model": bodies.Explanation, **named(*OF_JSON)},
        **problem_replies(ErrorCode.NOT_FOUND, ErrorCode.INVALID_PARAMETER),
    },
)
@needs(None)
async def explain(
    code: Annotated[str, Path(description="A problem's `code`.", examples=["unknown-split"])], _: NoParameters
) -> Response:
    """The explanation behind a problem's `type`."""
    for known, meaning in MEANINGS.items():
        if known.code == code:
            kind = problem_type(known)
            return ReadableJson(bodies.Explanation(type=kind, code=code, status=known.status, title=known.title, meaning=meaning))
    raise NotFound(f"code {code!r} is not one of this service's; codes: {', '.join(known.code for known in MEANINGS)}")
