"""What the service is doing now: as a page, and as JSON that the page asks for each second."""

from dataclasses import asdict

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from ...page.render import Frame
from ..json_replies import CompactJson
from ..pages import PAGES, page
from ..routing import Route
from ..state import CurrentService
from .common import NoParameters

router = APIRouter(route_class=Route, include_in_schema=False)


@router.get(f"{PAGES}/live")
async def live(request: Request, service: CurrentService, _: NoParameters) -> Response:
    def make(frame: Frame) -> bytes:
        from ...page.views import live as view

        return view.page(frame, service.live.now())

    return await page(request, service, make)


@router.get(f"{PAGES}/live.json")
async def live_json(service: CurrentService, _: NoParameters) -> Response:
    """Totals since the start, and when they were so: whoever asks twice knows what came between. Names no token."""
    traffic = await to_thread.run_sync(service.live.traffic)
    return CompactJson(asdict(traffic), headers={"Cache-Control": "no-store"})
