"""Single rows, to look at: by index, or those that match what is searched for, in any order, as JSON or CSV."""

from typing import Annotated

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import Response

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.plan import Indices
from cpstream_client.contract.wire import ErrorCode

from ...errors import IndexOutOfRange, InvalidParameter, NotAcceptable, shown
from ...snapshot.store import Split
from ..csv_replies import CsvReply
from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..files import attachment
from ..json_replies import CompactJson, samples_of
from ..negotiation import caching, etag_of, not_modified, preferred, target_of
from ..parameters import RowsParameters
from ..state import CurrentService, Service
from .common import COMMON, SplitName, v1_router

DEFAULT_LENGTH = 100

router = v1_router()


@router.get(
    "/splits/{split:name}/rows",
    tags=["splits"],
    summary="A page of samples",
    responses={
        200: {"model": bodies.Rows, "content": {wire.CSV: {}}, **named(*CACHED, *OF_JSON, "Content-Disposition")},
        304: CURRENT | named(*CACHED),
        **problem_replies(
            *COMMON, ErrorCode.INDEX_OUT_OF_RANGE, ErrorCode.TOO_MANY_STREAMS, ErrorCode.TOO_MANY_BYTES, ErrorCode.OVERLOADED
        ),
    },
)
async def rows(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[RowsParameters, Query()]
) -> Response:
    """Samples to look at: `index`, `file_path`, `cps`, further labels, and `embedding` when asked for; by index, or as `sort` says.

    `total` says how many the split has, `matching` how many match what is searched for; the last page is shorter, and the page at
    the end is empty. With `Accept: text/csv`: a table of all that match, in which no path is taken for a formula.
    """
    served = service.split(split, parameters.fingerprint)
    if _is_csv(request):
        return await csv_reply(request, service, served, parameters)
    length = _json_length(parameters.length, service.settings.max_json_rows)
    _check_sort(served, parameters.sort)
    etag = etag_of(served.fingerprint, wire.JSON, {"path": target_of(request.scope)})
    reply = not_modified(request, etag)
    if reply is not None:
        return reply
    indices, matching = await selected(service, served, parameters, length)
    headers = {"ETag": etag, **caching(request)}
    return await to_thread.run_sync(lambda: CompactJson(rows_of(served, parameters, indices, matching), headers=headers))


async def csv_reply(request: Request, service: Service, split: Split, parameters: RowsParameters) -> Response:
    """All rows that match, as a file. Raises InvalidParameter, IndexOutOfRange."""
    if parameters.embedding:
        raise InvalidParameter("embedding is true, and CSV holds no embeddings; ask for JSON, or download embeddings.npy")
    _check_sort(split, parameters.sort)
    etag = etag_of(split.fingerprint, wire.CSV, {"path": target_of(request.scope)})
    reply = not_modified(request, etag)
    if reply is not None:
        return reply
    indices, _ = await selected(service, split, parameters, parameters.length)
    headers = {"ETag": etag, **caching(request), "Content-Disposition": attachment(f"{split.name}-rows.csv")}
    return CsvReply(service.batch_server, split, indices, headers, request.scope["state"]["client"])


async def selected(service: Service, split: Split, parameters: RowsParameters, length: int | None) -> tuple[Indices, int]:
    """Indices of the page asked for, (B,) int64, and how many samples match. Raises InvalidParameter, IndexOutOfRange."""
    _check_sort(split, parameters.sort)
    wanted, total = parameters.wanted, split.info.num_samples
    asked = split, wanted, min(parameters.offset, total), length
    indices, matching = await to_thread.run_sync(service.selections.page, *asked, limiter=service.selecting)
    if parameters.offset > matching:
        have = f"the split's {total} samples" if wanted.is_all else f"the {matching} samples that match"
        raise IndexOutOfRange(f"offset is {parameters.offset}; it must be from 0 to {have}")
    return indices, matching


def rows_of(split: Split, parameters: RowsParameters, indices: Indices, matching: int) -> bodies.Rows:
    """What `selected` has found, with what is known of each sample."""
    columns: tuple[wire.Column, ...] = ("index", "file_path", "cps", *split.labels)
    if parameters.embedding:
        columns += ("embedding",)
    return bodies.Rows(
        split=split.name,
        fingerprint=split.fingerprint,
        offset=parameters.offset,
        total=split.info.num_samples,
        matching=None if parameters.wanted.is_all else matching,
        rows=samples_of(split, indices, columns),
    )


def _check_sort(split: Split, sort: str) -> None:
    if sort not in (sorts := ("index", "file_path", "cps", *split.labels)):
        raise InvalidParameter(f"sort is {shown(sort)}; it must be one of {', '.join(sorts)}")


def _is_csv(request: Request) -> bool:
    """JSON for whoever asks for neither: a browser that follows a link wants to see something."""
    try:
        return preferred(request, (wire.JSON, wire.CSV)) == wire.CSV
    except NotAcceptable:
        return False


def _json_length(length: int | None, most: int) -> int:
    """Raises InvalidParameter."""
    if length is None:
        return min(DEFAULT_LENGTH, most)
    if length > most:
        raise InvalidParameter(f"length is {length}; it must be from 1 to {most} (max_json_rows)")
    return length
