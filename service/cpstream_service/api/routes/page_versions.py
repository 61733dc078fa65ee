"""The page of the versions that are held, and what two of them differ in."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from cpstream_client.contract import wire
from cpstream_client.contract.versions import VersionInfo, VersionList

from ...errors import RequestError
from ...page.render import Frame
from ..pages import PAGES, page
from ..parameters import DifferenceParameters, Parameters
from ..routing import Route
from ..state import CurrentService, Service
from .common import SplitName
from .difference import difference_of, difference_reply
from .versions import versions_of

router = APIRouter(route_class=Route, include_in_schema=False)


class TwoVersions(Parameters):
    from_: Annotated[str, Field(alias="from", description="Fingerprint of the version that the comparison begins with.")] = ""
    to: Annotated[str, Field(description="That of the other one; by default the current version's.")] = ""


@router.get(f"{PAGES}/versions")
async def versions(request: Request, service: CurrentService, parameters: Annotated[TwoVersions, Query()]) -> Response:
    listed = await to_thread.run_sync(versions_of, service)
    old, new, fault = _chosen(listed, parameters)
    compared: list[Any] = []
    if old is not None and new is not None and not fault:
        try:
            compared = await to_thread.run_sync(_compared, service, old, new)
        except RequestError as error:  # another comparison goes on, or a version has gone meanwhile
            fault = error.detail

    def make(frame: Frame) -> bytes:
        from ...page.views import versions as view

        return view.page(frame, listed, old, new, compared, fault)

    return await page(request, service, make)


def _chosen(listed: VersionList, parameters: TwoVersions) -> tuple[VersionInfo | None, VersionInfo | None, str]:
    """The two versions, and what is wrong with the choice. Where none is chosen: the last two, which are not compared yet."""
    held = {version.fingerprint: version for version in listed.versions}
    if not parameters.from_:
        newest = list(held.values())
        return (newest[1] if len(newest) > 1 else None), None, ""
    current = next((version.fingerprint for version in listed.versions if version.current), "")
    for fingerprint in (parameters.from_, parameters.to or current):
        if fingerprint not in held:
            return None, None, f"version {fingerprint[:80]} is not held any more; choose one of those above"
    return held[parameters.from_], held[parameters.to or current], ""


def _compared(service: Service, old: VersionInfo, new: VersionInfo) -> list[Any]:
    """Each split of either. Reads both whole when they are first compared: not for the event loop. Raises RequestError."""
    from ...page.views.versions import Compared

    before, after = ({split.split: split for split in version.splits} for version in (old, new))
    found = []
    for name in dict.fromkeys([*after, *before]):
        if name not in before:
            found.append(Compared(name, f"A new split, {after[name].num_samples:,} samples."))
        elif name not in after:
            found.append(Compared(name, f"Gone, {before[name].num_samples:,} samples."))
        elif before[name].fingerprint == after[name].fingerprint:
            found.append(Compared(name, f"The same, {after[name].num_samples:,} samples to the bit."))
        else:
            one, other = service.split(name, before[name].fingerprint), service.split(name, after[name].fingerprint)
            found.append(Compared(name, "", difference_of(one, other, service.differences.of(one, other))))
    return found


@router.get(f"{PAGES}/splits/{{split:name}}/diff.csv")
async def diff_csv(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[DifferenceParameters, Query()]
) -> Response:
    """A link cannot say that it accepts CSV."""
    return await difference_reply(request, service, split, parameters, wire.CSV)
