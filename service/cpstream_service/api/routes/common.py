"""What the routes under /v1 share."""

from typing import Annotated

from fastapi import APIRouter, Path, Security
from fastapi.security import HTTPBearer

from cpstream_client.contract import wire
from cpstream_client.contract.wire import ErrorCode

from ..parameters import PinnedParameters, given
from ..problems import problem_replies

COMMON = (ErrorCode.UNKNOWN_SPLIT, ErrorCode.DATASET_CHANGED, ErrorCode.INVALID_PARAMETER)
Pinned = Annotated[PinnedParameters, given(PinnedParameters)]
SplitName = Annotated[str, Path(description="Name of the split, as `GET /v1/splits` lists it.", examples=["train"])]


def v1_router() -> APIRouter:
    """A router under /v1: each module of routes fills its own."""
    return APIRouter(
        prefix=wire.API_PREFIX,
        dependencies=[Security(HTTPBearer(auto_error=False, description="Needed where the service has a token."))],
        responses=problem_replies(ErrorCode.UNAUTHORIZED, ErrorCode.DRAINING, ErrorCode.INTERNAL),
    )
