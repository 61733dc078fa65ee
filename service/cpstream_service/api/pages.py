"""Pages as replies: the frame around each, what is known of the figures, headers; and problems, for who asks for HTML."""

from collections.abc import Callable

from anyio import to_thread
from fastapi import Request
from starlette.responses import Response
from starlette.types import Scope

from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import JSON

from ..errors import Forgotten, NotAcceptable, Reloading, StatisticsFailed
from ..page import assets, policy
from ..page.pinned import Pin
from ..page.render import Frame
from ..page.told import Told
from ..snapshot.store import Split
from .negotiation import etag_of, not_modified, preferred
from .state import Service
from .versions import Version

HTML = "text/html"
PAGES = "/page"
"""What all pages but the first begin with."""


def wants_page(request: Request) -> bool:
    """JSON for whoever does not say that it would rather have HTML: a browser does."""
    try:
        return preferred(request, (JSON, HTML)) == HTML
    except NotAcceptable:
        return False


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(f"{PAGES}/")


async def page(request: Request, service: Service, make: Callable[[Frame], bytes], status: int = 200) -> Response:
    """The page that `make` renders, in a thread, as it may take tens of milliseconds."""
    body = await to_thread.run_sync(lambda: make(frame_of(request.scope, service)))
    return page_reply(request, body, status)


def page_reply(request: Request, body: bytes, status: int = 200) -> Response:
    """Asked for anew each time, and not sent again where nothing has changed: what is shown may, at any time."""
    etag = etag_of("", HTML, {"body": body.decode()})
    headers = policy.HEADERS | {"Cache-Control": "private, no-cache", "Vary": "Accept"}
    reply = not_modified(request, etag) if status == 200 else None
    if reply is None:
        reply = Response(body, status, media_type=HTML)
    reply.headers.update(headers | {"ETag": etag})
    return reply


def frame_of(scope: Scope, service: Service | None) -> Frame:
    """What the page of this request shows around its content."""
    state = scope["state"]
    may_read = "rights" in state and "read" in state["rights"].scopes
    version = service.versions.current if service is not None and may_read and service.versions.is_ready else None
    path: str = scope["path"]  # a slash of a name is still encoded in it
    return Frame(
        root="../" * (path.count("/") - 1),
        assets=assets.folder(),
        plotly=assets.plotly(),
        plotly_styles=assets.plotly_styles(),
        splits=() if version is None else tuple(version.snapshot.splits),
        fingerprint=None if version is None else version.snapshot.fingerprint,
        software=scope["app"].version,
        here=path.rstrip("/") or "/",
        token=state.get("token") or "",
        has_cookie=state.get("has_cookie", False),
    )


def pin_of(service: Service, version: Version, split: Split, pinned: str | None) -> Pin:
    """Of a page that shows the split of this version. pinned: the fingerprint that was asked for, or None."""
    return Pin(split.fingerprint, service.versions.is_current(version), pinned is not None)


async def told(service: Service, version: Version, pinned: str | None = None) -> Told:
    """What is known of a version's figures. Asking begins their computation. Raises Forgotten, Reloading."""
    service.versions.check_whole(version, pinned)
    return await to_thread.run_sync(_told, service, version)


async def told_or_not(service: Service, version: Version, pinned: str | None = None) -> Told:
    """The same for a page that can do without them: where another split may not be told of, that is why."""
    try:
        return await told(service, version, pinned)
    except (Forgotten, Reloading) as error:
        return Told(failure=error.detail)


def _told(service: Service, version: Version) -> Told:
    try:
        found = service.jobs.ready(version.snapshot) or service.jobs.ask(version.snapshot)
    except StatisticsFailed as error:
        return Told(failure=error.detail)
    return Told(progress=found) if isinstance(found, float) else Told.ready(found)


def problem_page(scope: Scope, problem: Problem, headers: dict[str, str]) -> Response:
    """A problem for people, with the headers that it has as JSON."""
    from ..page.views import problem as view  # here: what renders loads what the service need not have

    service: Service | None = getattr(scope["app"].state, "service", None)
    body = view.page(frame_of(scope, service), problem)
    return Response(body, problem.status, policy.HEADERS | headers | {"Vary": "Accept"}, media_type=HTML)
