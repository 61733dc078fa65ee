"""The versions of the data that the service holds, and how another one is made current."""

import time

from fastapi import Request
from starlette.responses import Response

from cpstream_client.contract import wire
from cpstream_client.contract.versions import ReloadAsked, VersionInfo, VersionList, VersionSplit
from cpstream_client.contract.wire import ErrorCode

from ...errors import NotConfigured
from ...snapshot.last_use import last_used
from ..description import OF_JSON, named, problem_replies
from ..json_replies import ReadableJson
from ..rights import needs
from ..state import CurrentService, Service
from ..versions import Version
from .common import NoParameters, v1_router

PATH = f"{wire.API_PREFIX}/versions"

router = v1_router()


@router.get(
    "/versions",
    tags=["versions"],
    summary="All versions of the data",
    responses={
        200: {"model": VersionList, **named(*OF_JSON, "Cache-Control")},
        **problem_replies(ErrorCode.INVALID_PARAMETER),
    },
)
def versions(service: CurrentService, _: NoParameters) -> Response:
    """What is held, the newest first: which requests that pin a fingerprint are answered from. And how the last reload went.

    It answers while the data is being loaded, too: `reload` and `progress` say how far that is.
    """
    return ReadableJson(versions_of(service), headers={"Cache-Control": "no-store"})


def versions_of(service: Service) -> VersionList:
    """What is held, the newest first, and how the last reload went. Looks at files: not for the event loop."""
    held, state = service.versions.held.values(), service.state
    return VersionList(
        versions=tuple(_told(version, service.versions.is_current(version)) for version in reversed(held)),
        reload=state.reload,
        progress=state.progress,
        last_reload=state.last,
    )


def _told(version: Version, current: bool) -> VersionInfo:
    snapshot = version.snapshot
    used_s = last_used(snapshot.path)
    return VersionInfo(
        fingerprint=snapshot.fingerprint,
        current=current,
        made_at=snapshot.created_at,
        last_used_at=None if used_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(used_s)),
        splits=tuple(
            VersionSplit(split=split.name, fingerprint=split.fingerprint, num_samples=split.info.num_samples)
            for split in snapshot.splits.values()
        ),
    )


@router.post(
    "/reload",
    tags=["versions"],
    summary="Load the data anew",
    status_code=202,
    responses={
        202: {"model": ReloadAsked, **named(*OF_JSON[:1], "Cache-Control", "Location")},
        **problem_replies(ErrorCode.INVALID_PARAMETER, ErrorCode.NOT_CONFIGURED),
    },
)
@needs("admin")
async def reload(request: Request, service: CurrentService, _: NoParameters) -> Response:
    """Read the source again, beside what is served, and make what it gives current in every worker. Answers before it is done.

    Requests that pin an older fingerprint are answered from its version as long as that is kept. What fails leaves all as it is.
    A reload that runs already is not counted on: it may have read too early, and one more follows it.
    """
    if service.follower is None:
        raise NotConfigured("this service was made over one snapshot, and knows no source to load; serve by: cpstream serve")
    number = service.follower.control.ask_reload(f"asked for by {request.scope['state']['client']}")
    body = ReloadAsked(number=number, versions=PATH.lstrip("/"))
    return ReadableJson(body, 202, headers={"Location": PATH.rpartition("/")[2], "Cache-Control": "no-store"})
