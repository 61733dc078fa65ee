"""The client that fits this service, for pip: open like static files, since pip sends no bearer token."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.wire import ErrorCode

from ...errors import NotFound
from ..client_code import client_info
from ..client_wheel import find_wheel
from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..json_replies import ReadableJson
from ..negotiation import not_modified
from ..rights import needs
from ..routing import Route
from .common import NoParameters

router = APIRouter(prefix=wire.CLIENT_PATH, tags=["client"], route_class=Route)


@router.get(
    "",
    summary="Which client fits",
    responses={200: {"model": bodies.ClientInfo, **named(*OF_JSON)}, **problem_replies(ErrorCode.INVALID_PARAMETER)},
)
@needs(None)
async def client(_: NoParameters) -> Response:
    """The contract that this service speaks, and the wheel of the client that was built with it.

    `pip install 'cpstream[torch] @ <this service>/client/<name of the wheel>#sha256=<sha256>'` installs it.
    """
    return ReadableJson(client_info())


@router.get(
    "/{name}",
    summary="The client, as a wheel",
    response_class=Response,
    responses={
        200: {"description": "The wheel.", "content": {wire.OCTET_STREAM: {}}, **named(*CACHED)},
        304: CURRENT | named(*CACHED),
        **problem_replies(ErrorCode.NOT_FOUND, ErrorCode.INVALID_PARAMETER),
    },
)
@needs(None)
async def wheel(
    name: Annotated[str, Path(description="As `GET /client` says it.", examples=["cpstream-0.1.0-py3-none-any.whl"])],
    request: Request,
    _: NoParameters,
) -> Response:
    """For `pip install`, which takes it by its URL."""
    held = find_wheel()
    if held is None:
        raise NotFound("this service was installed without a wheel of its client: pip install cpstream, of the service's version")
    if name != held.name:
        raise NotFound(f"{name!r} is not the client that fits this service; that is {held.name}")
    etag = f'"{held.sha256}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    reply = not_modified(request, etag)
    return reply or Response(held.content, media_type=wire.OCTET_STREAM, headers=headers)
