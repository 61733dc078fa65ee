"""Samples for training: batches of an epoch, samples at any indices, and the audit of a step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cpstream_client.contract import bodies, wire
from cpstream_client.contract.wire import BatchQuery, ErrorCode

from ...errors import IndexOutOfRange, InvalidParameter
from ...snapshot.store import Split
from ..arrow_replies import ArrowStream
from ..description import CACHED, CURRENT, OF_JSON, named, problem_replies
from ..json_replies import CompactJson, ReadableJson, check_json_rows, samples_of
from ..negotiation import caching, etag_of, not_modified, preferred
from ..parameters import BatchParameters, PlanParameters, SampleParameters, sample_parameters
from ..rights import needs
from ..routing import Route
from ..state import CurrentService, Service
from ..take_body import BATCHES_SCHEMA, TAKE_SCHEMA, read_batches, read_indices
from .common import COMMON, SplitName, v1_router

OFFERS = (wire.ARROW_STREAM, wire.JSON)
_ARROW_CONTENT = {"schema": {"type": "string", "format": "binary"}}
_EPOCH_ERRORS = (*COMMON, ErrorCode.PAYLOAD_TOO_LARGE)
_BATCH_ERRORS = (
    *_EPOCH_ERRORS,
    ErrorCode.NOT_ACCEPTABLE,
    ErrorCode.TOO_MANY_STREAMS,
    ErrorCode.TOO_MANY_BYTES,
    ErrorCode.OVERLOADED,
    ErrorCode.STORAGE_FAILED,
    ErrorCode.DRAINING,
)
_BODY_ERRORS = (*_BATCH_ERRORS, ErrorCode.INDEX_OUT_OF_RANGE, ErrorCode.BODY_TIMEOUT)

router = v1_router()


@contextmanager
def plan_errors() -> Iterator[None]:
    """The plan's ValueErrors, which name the value and its range, as InvalidParameter."""
    try:
        yield
    except ValueError as error:
        raise InvalidParameter(str(error)) from error


@router.get(
    "/splits/{split:name}/batches",
    tags=["batches"],
    summary="Batches of an epoch",
    response_class=Response,
    responses={
        200: {
            "description": "An Arrow IPC stream, one record batch a batch. Columns as asked, nothing nullable: `embedding` "
            "fixed_size_list&lt;float32|float16&gt;[D], `cps` float32, `index` int64, `file_path` string. The schema's metadata "
            "has `split`, `fingerprint`, `seed`, `epoch`, `start`, `num_rows`, `num_batches` and `query`: count the rows, since "
            "Arrow readers take a stream that is cut between two batches for a whole one. With `Accept: application/json`: the "
            "same as JSON.",
            "content": {wire.ARROW_STREAM: _ARROW_CONTENT},
            "model": bodies.JsonBatches,
            **named(*CACHED, *OF_JSON),
        },
        304: CURRENT | named(*CACHED),
        **problem_replies(*_BATCH_ERRORS),
    },
)
async def batches(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[BatchParameters, Query()]
) -> Response:
    """One rank's batches of one epoch, from `start` on, in order.

    Without parameters: the whole split by index, in batches of 256. For training, give `batch_size`, `shuffle=true`, `seed`,
    `epoch`, and on several machines `rank` and `world_size`. To resume after a failure, give as `start` how many samples of the
    epoch all ranks together have consumed; any batch size and world size may go on from there.
    """
    served, query = service.split(split, parameters.fingerprint), parameters.query()
    with plan_errors():
        num_rows = query.num_rows(served.info.num_samples)
    representation = preferred(request, OFFERS)
    etag = etag_of(served.fingerprint, representation, query.to_params())
    reply = not_modified(request, etag)
    if reply is not None:
        return reply
    _note(request, split, num_rows, len(query.steps(served.info.num_samples)))
    headers = {"ETag": etag, **caching(request)}
    if representation == wire.JSON:
        return await _json_batches(service, served, query, num_rows, headers)
    return ArrowStream(service.batch_server, await service.batch_server.batches(served, query), headers)


# Another name, for readers that go by a suffix; the description has one of the two.
router.get("/splits/{split:name}/batches.arrows", include_in_schema=False)(batches)


@needs("read")
async def take(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[SampleParameters, Query()]
) -> Response:
    """The samples at the indices of the body, in the order asked: random access for a map-style dataset."""
    served = service.split(split, parameters.fingerprint)
    representation = preferred(request, OFFERS)
    indices = await read_indices(request, service.arrivals, served.info.num_samples)
    _note(request, split, len(indices), 1)
    if representation == wire.ARROW_STREAM:
        reply = await service.batch_server.take(served, indices, parameters.dtype, parameters.parsed_columns)
        return ArrowStream(service.batch_server, reply, {"Cache-Control": "no-transform"})
    check_json_rows(len(indices), service.settings.max_json_rows, "ask for fewer indices at a time, or for Arrow")
    samples = await to_thread.run_sync(samples_of, served, indices, parameters.parsed_columns, parameters.dtype)
    batch = bodies.JsonBatch(step=0, samples=samples)
    return CompactJson(bodies.JsonBatches(split=split, fingerprint=served.fingerprint, num_rows=len(samples), batches=(batch,)))


@needs("read")
async def chosen_batches(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[SampleParameters, Query()]
) -> Response:
    """The samples at the indices of each batch of the body, in that order: any sampler's batches, many in one request."""
    served = service.split(split, parameters.fingerprint)
    representation = preferred(request, OFFERS)
    chosen = await read_batches(request, service.arrivals, served.info.num_samples)
    num_rows = len(chosen.indices)
    _note(request, split, num_rows, len(chosen))
    if representation == wire.ARROW_STREAM:
        reply = await service.batch_server.chosen(served, chosen, parameters.dtype, parameters.parsed_columns)
        return ArrowStream(service.batch_server, reply, {"Cache-Control": "no-transform"})
    for rows in (num_rows, len(chosen)):  # any number of batches may be empty
        check_json_rows(rows, service.settings.max_json_rows, "ask for fewer batches at a time, or for Arrow")

    def build() -> Response:
        samples = (samples_of(served, indices, parameters.parsed_columns, parameters.dtype) for indices in chosen)
        batches = tuple(bodies.JsonBatch(step=step, samples=each) for step, each in enumerate(samples))
        return CompactJson(bodies.JsonBatches(split=split, fingerprint=served.fingerprint, num_rows=num_rows, batches=batches))

    return await to_thread.run_sync(build)


class BodyRoute(Route):
    """What a body asks for is often little: FastAPI describes these routes, and has no part in answering their requests."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await super().answer(scope, receive, send)
            return
        request, parameters = Request(scope, receive), sample_parameters(scope["query_string"])
        service: Service = request.app.state.service
        try:
            reply = await self.endpoint(scope["path_params"]["split"], request, service, parameters)
            await reply(scope, receive, send)
        finally:
            service.arrivals.release(request)


router.add_api_route(
    "/splits/{split:name}/take",
    take,
    methods=["POST"],
    route_class_override=BodyRoute,
    tags=["batches"],
    summary="Samples at any indices",
    response_class=Response,
    openapi_extra={"requestBody": TAKE_SCHEMA},
    responses={
        200: {
            "description": "An Arrow IPC stream with one record batch, as that of batches; or JSON, as there.",
            "content": {wire.ARROW_STREAM: _ARROW_CONTENT},
            "model": bodies.JsonBatches,
            **named("Cache-Control", *OF_JSON),
        },
        **problem_replies(*_BODY_ERRORS),
    },
)

router.add_api_route(
    "/splits/{split:name}/batches",
    chosen_batches,
    methods=["POST"],
    route_class_override=BodyRoute,
    tags=["batches"],
    summary="Batches of any indices",
    response_class=Response,
    openapi_extra={"requestBody": BATCHES_SCHEMA},
    responses={
        200: {
            "description": "An Arrow IPC stream, one record batch a batch of the body, as that of GET; or JSON, as there.",
            "content": {wire.ARROW_STREAM: _ARROW_CONTENT},
            "model": bodies.JsonBatches,
            **named("Cache-Control", *OF_JSON),
        },
        **problem_replies(*_BODY_ERRORS),
    },
)


@router.get(
    "/splits/{split:name}/plan",
    tags=["batches"],
    summary="Which samples every rank gets at a step",
    responses={
        200: {"model": bodies.PlanStep, **named("Cache-Control", "Vary", *OF_JSON)},
        **problem_replies(*_EPOCH_ERRORS, ErrorCode.INDEX_OUT_OF_RANGE),
    },
)
async def plan(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[PlanParameters, Query()]
) -> Response:
    """The audit of a batch: index, file_path and cps of what each rank gets at `step`, to trace a loss spike to its recordings."""
    served, step = service.split(split, parameters.fingerprint), parameters.step
    with plan_errors():
        epoch = parameters.query().plan(served.info.num_samples)
    if step >= epoch.num_steps:
        steps = f"steps: 0 to {epoch.num_steps - 1}" if epoch.num_steps else "it has none"
        raise IndexOutOfRange(f"step is {step}, past the end of the epoch from start {epoch.start} on; {steps}")
    remedy = "lower batch_size or world_size"
    check_json_rows(epoch.world_size, service.settings.max_json_rows, remedy)
    plans = [replace(epoch, rank=rank) for rank in range(epoch.world_size)]
    bounds = [rank.step_bounds(step) for rank in plans]
    check_json_rows(sum(high - low for low, high in bounds), service.settings.max_json_rows, remedy)
    order = await service.batch_server.order(epoch)
    ranks = tuple(
        bodies.RankSamples(rank=rank.rank, samples=samples_of(served, rank.batch(order, step), ("index", "file_path", "cps")))
        for rank in plans
    )
    body = bodies.PlanStep(
        split=split,
        fingerprint=served.fingerprint,
        step=step,
        num_steps=epoch.num_steps,
        next_start=epoch.start_after(step + 1),
        ranks=ranks,
    )
    return ReadableJson(body, headers=caching(request))


async def _json_batches(service: Service, split: Split, query: BatchQuery, num_rows: int, headers: Mapping[str, str]) -> Response:
    epoch, steps = query.plan(split.info.num_samples), query.steps(split.info.num_samples)
    check_json_rows(num_rows, service.settings.max_json_rows, "lower limit or batch_size, or ask for Arrow")
    check_json_rows(len(steps), service.settings.max_json_rows, "lower limit")  # a short rank's batches may all be empty
    order = await service.batch_server.order(epoch)

    def build() -> Response:
        samples = (samples_of(split, epoch.batch(order, step), query.columns, query.dtype) for step in steps)
        batches = tuple(bodies.JsonBatch(step=step, samples=each) for step, each in zip(steps, samples, strict=True))
        body = bodies.JsonBatches(split=split.name, fingerprint=split.fingerprint, num_rows=num_rows, batches=batches)
        return CompactJson(body, headers=headers)

    return await to_thread.run_sync(build)


def _note(request: Request, split: str, samples: int, batches: int) -> None:
    """Leave for the log and the metrics what this reply holds."""
    request.scope["state"].update(split=split, samples=samples, batches=batches)
