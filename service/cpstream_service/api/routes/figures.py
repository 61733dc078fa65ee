"""What a split looks like: statistics and a projection, computed when first asked for, and the neighbours of a sample."""

from typing import Annotated

import pyarrow.compute as pc
from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import Response

from cpstream_client.contract import bodies, figures, wire
from cpstream_client.contract.wire import ErrorCode

from ...arrow import string
from ...errors import IndexOutOfRange, InvalidParameter, NotFound, shown
from ...snapshot.store import Split
from ...statistics.kept import Text, Texts
from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..json_replies import ReadableJson, samples_of
from ..negotiation import caching, etag_of, not_modified, target_of
from ..parameters import NeighboursParameters
from ..state import CurrentService, Service
from .common import COMMON, Pinned, SplitName, v1_router

RETRY_AFTER_S = 1
_SHOWN = ("index", "file_path", "cps")

router = v1_router()

_COMPUTING = {
    "description": "They are being computed. Ask again after Retry-After seconds.",
    "model": figures.Computing,
    **named("Cache-Control", "Retry-After", wire.DIGEST_HEADER),
}


@router.get(
    "/splits/{split:name}/statistics",
    tags=["figures"],
    summary="What a split looks like in figures",
    responses={
        200: {"model": figures.Statistics, **named(*CACHED, *OF_JSON)},
        202: _COMPUTING,
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON, ErrorCode.STATISTICS_FAILED),
    },
)
async def statistics(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """Rates, norms, duplicates, what other splits share, how they differ, and a ridge regression of CPS on the embedding.

    Computed when first asked for, by a process of low priority, and kept beside the snapshot: until then `202`.
    """
    found = await _figures(split, service, parameters.fingerprint)
    return found if isinstance(found, Response) else _reply(request, found.statistics)


@router.get(
    "/splits/{split:name}/projection",
    tags=["figures"],
    summary="Samples in the plane of two principal components",
    responses={
        200: {"model": figures.Projection, **named(*CACHED, *OF_JSON)},
        202: _COMPUTING,
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON, ErrorCode.STATISTICS_FAILED),
    },
)
async def projection(split: SplitName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """The first two principal components of at most 5,000 samples, always the same ones. Computed with the statistics."""
    found = await _figures(split, service, parameters.fingerprint)
    return found if isinstance(found, Response) else _reply(request, found.projection)


async def _figures(split: str, service: Service, pinned: str | None) -> Texts | Response:
    """What is said of the split, or the reply that it is being computed."""
    version, served = service.versions.find(split, pinned)
    service.versions.check_whole(version, pinned)
    found = service.jobs.ready(version.snapshot)
    if found is None:
        answer = await to_thread.run_sync(service.jobs.ask, version.snapshot)
        if isinstance(answer, float):
            headers = {"Retry-After": str(RETRY_AFTER_S), "Cache-Control": "no-store"}
            return ReadableJson(figures.Computing(status="computing", progress=answer), 202, headers)
        found = answer
    return found[served.name]


class _Ready(ReadableJson):
    """JSON that is text already."""

    def render(self, content: bytes) -> bytes:
        return content


def _reply(request: Request, text: Text) -> Response:
    """Never kept for ever: the figures depend on other splits, too, and their last digits on the machine that computed them."""
    etag = etag_of(text.digest, wire.JSON, {"path": target_of(request.scope)})
    reply = not_modified(request, etag) or _Ready(text.body, headers={"ETag": etag, "Vary": "Accept"})
    reply.headers["Cache-Control"] = "no-cache, no-transform"
    return reply


@router.get(
    "/splits/{split:name}/neighbours",
    tags=["figures"],
    summary="The samples nearest to one",
    responses={
        200: {"model": figures.Neighbours, **named(*CACHED, *OF_JSON)},
        304: CURRENT | named(*CACHED),
        **problem_replies(*COMMON, ErrorCode.INDEX_OUT_OF_RANGE, ErrorCode.NOT_FOUND, ErrorCode.OVERLOADED),
    },
)
async def neighbours(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[NeighboursParameters, Query()]
) -> Response:
    """The samples of the split whose embeddings have the largest cosine with that of the sample at `index`, or of `file_path`.

    Exact: all of the split is looked at, by one request at a time. Samples of all-zero embeddings are left out.
    """
    served = service.split(split, parameters.fingerprint)
    if (parameters.index is None) == (parameters.file_path is None):
        raise InvalidParameter("give either index or file_path: of which sample the neighbours are wanted")
    etag = etag_of(served.fingerprint, wire.JSON, {"path": target_of(request.scope)})
    reply = not_modified(request, etag)
    if reply is None:
        body = await neighbours_of(service, served, parameters)
        reply = ReadableJson(body, headers={"ETag": etag, **caching(request)})
    return reply


async def neighbours_of(service: Service, split: Split, parameters: NeighboursParameters) -> figures.Neighbours:
    """Raises Overloaded while another search goes on; InvalidParameter of an all-zero embedding; IndexOutOfRange, NotFound."""
    with service.searches.alone():
        return await to_thread.run_sync(_neighbours, service, split, parameters)


def _neighbours(service: Service, split: Split, parameters: NeighboursParameters) -> figures.Neighbours:
    index = _index(split, parameters)
    indices, cosines = service.searches.nearest(split, index, parameters.k)
    found = zip(samples_of(split, indices, _SHOWN), cosines.tolist(), strict=True)
    return figures.Neighbours(
        split=split.name,
        fingerprint=split.fingerprint,
        of=_sample(split, index),
        neighbours=tuple(figures.Neighbour(**dict(sample), cosine=round(cosine, 9)) for sample, cosine in found),
    )


def _sample(split: Split, index: int) -> bodies.Sample:
    return bodies.Sample(index=index, file_path=split.file_paths[index].as_py(), cps=float(split.cps[index]))


def _index(split: Split, parameters: NeighboursParameters) -> int:
    count = len(split.cps)
    if parameters.index is not None:
        if parameters.index >= count:
            raise IndexOutOfRange(f"index is {parameters.index}; it must be from 0 to {count - 1}")
        return parameters.index
    index = index_of(split, str(parameters.file_path))
    if index is None:
        raise NotFound(
            f"file_path is {shown(parameters.file_path)}, which split {shown(split.name)} does not have; rows lists paths"
        )
    return index


def index_of(split: Split, file_path: str) -> int | None:
    """Of the sample of this path. Looks through all of them: not for the event loop."""
    index = int(pc.index(split.file_paths, string(file_path)).as_py())
    return None if index < 0 else index
