"""The pages of what models made of a split: all runs side by side, and one of them."""

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from cpstream_client.contract.figures import Baseline

from ...page.render import Frame
from ...statistics.predictions.judging import points
from ..client_code import address_of
from ..pages import PAGES, page, pin_of, told_or_not
from ..routing import Route
from ..state import CurrentService, Service
from ..versions import Version
from .common import Pinned, SplitName
from .predictions import RunName, found_run, runs_of

router = APIRouter(route_class=Route, include_in_schema=False)


@router.get(f"{PAGES}/splits/{{split:name}}/runs")
async def runs(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """Beside what a ridge regression makes of it, once that is known."""
    version, served = service.versions.find(split, parameters.fingerprint)
    kept = None if service.runs is None else await to_thread.run_sync(runs_of, service.runs, served)
    baseline = await _baseline(service, version, split, parameters.fingerprint)
    pin = pin_of(service, version, served, parameters.fingerprint)

    def make(frame: Frame) -> bytes:
        from ...page.views import runs as view

        return view.page(frame, version.infos[split], pin, address_of(request), None if kept is None else kept.runs, baseline)

    return await page(request, service, make)


@router.get(f"{PAGES}/splits/{{split:name}}/runs/{{name}}")
async def run(split: SplitName, name: RunName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    version, served = service.versions.find(split, parameters.fingerprint)
    baseline = await _baseline(service, version, split, parameters.fingerprint)
    report, predicted = await found_run(service, served, name)
    pin = pin_of(service, version, served, parameters.fingerprint)

    def make(frame: Frame) -> bytes:
        from ...page.views import runs as view

        return view.one_page(frame, pin, report, points(name, served, predicted), baseline)

    return await page(request, service, make)


async def _baseline(service: Service, version: Version, split: str, pinned: str | None) -> Baseline | None:
    """Where it is known already, or soon is: the page does not wait for it."""
    statistics = (await told_or_not(service, version, pinned)).statistics
    return statistics[split].baseline if split in statistics else None
