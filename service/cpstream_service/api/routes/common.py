"""What the routes under /v1 share."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from cpstream_client.contract import wire
from cpstream_client.contract.wire import ErrorCode

from ..description import problem_replies
from ..parameters import Parameters, PinnedParameters
from ..routing import Route

COMMON = (
    ErrorCode.UNKNOWN_SPLIT,
    ErrorCode.DATASET_CHANGED,
    ErrorCode.INVALID_PARAMETER,
    ErrorCode.FORGOTTEN,
    ErrorCode.RELOADING,
)
NoParameters = Annotated[Parameters, Query()]
Pinned = Annotated[PinnedParameters, Query()]
SplitName = Annotated[str, Path(description="Name of the split, as `GET /v1/splits` lists it.", examples=["train"])]


def v1_router() -> APIRouter:
    """A router under /v1: each module of routes fills its own."""
    return APIRouter(
        prefix=wire.API_PREFIX,
        route_class=Route,
        responses=problem_replies(
            ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN, ErrorCode.TOO_MANY_BYTES, ErrorCode.DRAINING, ErrorCode.INTERNAL
        ),
    )
