"""The first page, those of splits, and the static files of all pages."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from cpstream_client.contract import bodies, wire

from ...errors import NotFound, shown
from ...page import assets
from ...page.render import Frame
from ...statistics.roles import cast
from ..client_code import code_of
from ..json_replies import ReadableJson
from ..negotiation import not_modified
from ..pages import PAGES, page, told, wants_page
from ..rights import needs
from ..routing import Route
from ..state import CurrentService, Service
from .common import NoParameters, Pinned, SplitName

router = APIRouter(route_class=Route, include_in_schema=False)

_FOR_EVER = "public, max-age=31536000, immutable"


@router.get("/")
async def index(request: Request, service: CurrentService, _: NoParameters) -> Response:
    """Links for programs, a page for people."""
    if wants_page(request):
        return await _overview(request, service)
    # relative, as all links here: a reverse proxy may serve all this under a path of its own
    links = bodies.Index(
        service="cpstream",
        splits=f"{wire.API_PREFIX}/splits".lstrip("/"),
        documentation="docs",
        openapi="openapi.json",
        ready="readyz",
        metrics="metrics",
        client=wire.CLIENT_PATH.lstrip("/"),
    )
    return ReadableJson(links, headers={"Vary": "Accept"})


async def _overview(request: Request, service: Service) -> Response:
    version = service.versions.whole
    known = await told(service, version)
    last, kept = service.state.last, service.runs

    def make(frame: Frame) -> bytes:
        from ...page.views import overview as view  # here: a service that nobody looks at needs none of it

        reload_error = last.error if last is not None and last.error is not None else ""
        train = cast(version.infos, service.settings.roles).roles.train or next(iter(version.infos))
        seen = view.Overview(
            version.snapshot,
            version.infos,
            known,
            code_of(request, service, version.infos[train]),
            service.live.now(),
            {} if kept is None else {name: kept.count(split.fingerprint) for name, split in version.snapshot.splits.items()},
            service.versions.stale_reason or "",
            reload_error,
        )
        return view.page(frame, seen)

    return await page(request, service, make)


@router.get(f"{PAGES}/splits/{{split:name}}")
async def split(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    version, served = service.versions.find(split, parameters.fingerprint)
    known = await told(service, version, parameters.fingerprint)

    def make(frame: Frame) -> bytes:
        from ...page.views import split as view

        is_current = service.versions.is_current(version)
        client = code_of(request, service, version.infos[split])
        return view.page(frame, view.SplitSeen(version.snapshot, served, version.infos, known, client, is_current))

    return await page(request, service, make)


@router.get(f"{PAGES}/static/{{version}}/{{name}}")
@needs(None)
async def static(version: Annotated[str, Path()], name: Annotated[str, Path()], request: Request, _: NoParameters) -> Response:
    """Kept for ever where its version is the one that there is: pages name it, so that another one has another address."""
    found = await to_thread.run_sync(assets.find, version, name)
    if found is None:
        raise NotFound(f"pages have no file {shown(name)}")
    asset, is_current = found
    gzipped = _takes_gzip(request.headers.get("accept-encoding", ""))
    etag = f'"{asset.etag}{"-gzip" if gzipped else ""}"'
    reply = not_modified(request, etag) or Response(asset.gzipped if gzipped else asset.content, media_type=asset.media_type)
    reply.headers.update(
        {
            "ETag": etag,
            "Vary": "Accept-Encoding",
            "Cache-Control": _FOR_EVER if is_current else "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    if gzipped and reply.status_code == 200:
        reply.headers["Content-Encoding"] = "gzip"
    return reply


def _takes_gzip(accepted: str) -> bool:
    """Of Accept-Encoding; `gzip;q=0` says no."""
    for entry in accepted.lower().split(","):
        name, _, quality = entry.replace(" ", "").partition(";")
        if name == "gzip":
            return quality not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
