"""The pages of a split's recordings: the table, the same as a file, and one sample."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import anyio
import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from cpstream_client.contract import bodies
from cpstream_client.contract.figures import Neighbour
from cpstream_client.contract.wire import COLUMNS

from ...errors import Forgotten, IndexOutOfRange, InvalidParameter, Overloaded, Reloading, shown
from ...page.pinned import Pin
from ...page.render import Frame
from ...snapshot.store import Split
from ..json_replies import samples_of
from ..pages import PAGES, page, pin_of, told_or_not
from ..parameters import MAX_INT64, NeighboursParameters, RowsParameters
from ..routing import Route
from ..state import CurrentService, Service
from ..versions import Version
from .common import Pinned, SplitName
from .figures import index_of, neighbours_of
from .rows import csv_reply, rows_of, selected

if TYPE_CHECKING:
    from ...page.views import sample as sample_view

router = APIRouter(route_class=Route, include_in_schema=False)

NEIGHBOURS = 10
_TRIES, _AGAIN_S = 10, 0.1
"""Of the search for neighbours, while another one goes on: who clicks through samples has left one behind."""


@router.get(f"{PAGES}/splits/{{split:name}}/rows")
async def rows(split: SplitName, request: Request, service: CurrentService) -> Response:
    """What is wrong with the search is said beside it, so that it can be mended there."""
    from ...page.views import rows as view

    query = dict(request.query_params)
    pinned = query.get("fingerprint") or None
    version, served = service.versions.find(split, pinned)
    try:
        found: bodies.Rows | str = await _rows(service, served, query)
    except (InvalidParameter, IndexOutOfRange) as error:
        found = error.detail

    def make(frame: Frame) -> bytes:
        pin = pin_of(service, version, served, pinned)
        return view.page(frame, split, pin, served.info.num_samples, tuple(served.labels), query, found)

    return await page(request, service, make, 422 if isinstance(found, str) else 200)


async def _rows(service: Service, split: Split, query: Mapping[str, str]) -> bodies.Rows:
    from ...page.views.rows import PAGE_ROWS

    parameters = _parameters(query)
    indices, matching = await selected(service, split, parameters, PAGE_ROWS)
    return await to_thread.run_sync(rows_of, split, parameters, indices, matching)


@router.get(f"{PAGES}/splits/{{split:name}}/rows.csv")
async def rows_csv(split: SplitName, request: Request, service: CurrentService) -> Response:
    """A link cannot say that it accepts CSV."""
    parameters = _parameters(request.query_params)
    return await csv_reply(request, service, service.split(split, parameters.fingerprint), parameters)


def _parameters(query: Mapping[str, str]) -> RowsParameters:
    """Those of the form, whose empty fields say nothing. Raises InvalidParameter."""
    from ...page.views.rows import QUERY

    for name in query:
        if name not in QUERY:
            raise InvalidParameter(f"parameter {shown(name)} is not known here; parameters: {', '.join(QUERY)}")
    return RowsParameters.model_validate({"search" if name == "q" else name: value for name, value in query.items() if value})


@router.get(f"{PAGES}/splits/{{split:name}}/samples/{{index}}")
async def sample(
    split: SplitName,
    index: Annotated[int, Path(ge=0, le=MAX_INT64)],
    request: Request,
    service: CurrentService,
    parameters: Pinned,
) -> Response:
    version, served = service.versions.find(split, parameters.fingerprint)
    count = served.info.num_samples
    if index >= count:
        raise IndexOutOfRange(f"index is {index}; it must be from 0 to {count - 1}")
    figures = await told_or_not(service, version, parameters.fingerprint)
    neighbours = await _neighbours(service, served, index)
    pin = pin_of(service, version, served, parameters.fingerprint)
    known = await to_thread.run_sync(_known, service, version, served, pin, index, neighbours)

    def make(frame: Frame) -> bytes:
        from ...page.views import sample as view

        return view.page(frame, known, figures)

    return await page(request, service, make)


async def _neighbours(service: Service, split: Split, index: int) -> tuple[Neighbour, ...] | str:
    for left in reversed(range(_TRIES)):
        try:
            found = await neighbours_of(service, split, NeighboursParameters(index=index, k=NEIGHBOURS))
            return found.neighbours
        except Overloaded:
            if left:
                await anyio.sleep(_AGAIN_S)
        except InvalidParameter:
            return "Its embedding is all zero, of which there is no cosine."
    return "Another search for neighbours is under way, and there is one at a time: load the page again."


def _known(
    service: Service,
    version: Version,
    split: Split,
    pin: Pin,
    index: int,
    neighbours: tuple[Neighbour, ...] | str,
) -> "sample_view.Found":
    """The rest of what is known of a sample. Reads files: not for the event loop."""
    from ...page.views import sample as view

    (sample,) = samples_of(split, np.array([index]), (*(name for name in COLUMNS if name != "embedding"), *split.labels))
    rate, rates = split.cps[index], np.asarray(split.cps)
    slower, faster = int(np.count_nonzero(rates < rate)), int(np.count_nonzero(rates > rate))
    guesses: list[view.Guess] | None = None
    if service.runs is not None:
        said = service.runs.of_sample(split.fingerprint, index)
        guesses = [view.guess(run, predicted, float(rate)) for run, predicted in said]
    others = ((other, _index_in(service, other, str(sample.file_path))) for other in version.snapshot.splits.values())
    return view.Found(
        split=split.name,
        pin=pin,
        sample=sample,
        standing=view.Standing(slower, len(rates) - slower - faster, faster),
        neighbours=neighbours,
        guesses=guesses,
        elsewhere=[
            view.Elsewhere(other.name, other.fingerprint, at) for other, at in others if other is not split and at is not None
        ],
    )


def _index_in(service: Service, split: Split, file_path: str) -> int | None:
    """Of the file in another split; None where it is not, or may not be told."""
    try:
        service.versions.split(split.name, split.fingerprint)
    except (Forgotten, Reloading):
        return None
    return index_of(split, file_path)
