"""Predictions that came back: published, compared, looked at, deleted."""

import logging
import re
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Path, Request
from starlette.responses import Response

from cpstream_client.contract import predictions as bodies
from cpstream_client.contract import wire
from cpstream_client.contract.wire import ErrorCode

from ...errors import Forgotten, InvalidParameter, NotConfigured, NotFound, StorageFailed
from ...snapshot.store import Split
from ...statistics.distributions import Doubles
from ...statistics.predictions.judging import judged, points
from ...statistics.predictions.reading import read_predictions
from ...statistics.predictions.store import Runs
from ..description import OF_JSON, named, problem_replies
from ..json_replies import CompactJson, ReadableJson
from ..state import CurrentService, Service
from .common import COMMON, Pinned, SplitName, v1_router

logger = logging.getLogger("cpstream.service")

MAX_BODY_BYTES = 64 * 1024**2
TABLES = (wire.CSV, wire.PARQUET, wire.ARROW_STREAM, wire.ARROW_FILE)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FRESH = {"Cache-Control": "no-cache"}
_OF_KEPT = (*COMMON, ErrorCode.NOT_CONFIGURED)
_OF_ONE = (*_OF_KEPT, ErrorCode.NOT_FOUND)
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "description": "A table with a column `predicted`, and `file_path` or `index`; others are passed over.",
    "content": {
        wire.CSV: _BINARY | {"example": "index,predicted\n0,17.2\n"},
        **dict.fromkeys((wire.PARQUET, wire.ARROW_STREAM, wire.ARROW_FILE), _BINARY),
    },
}
RunName = Annotated[str, Path(description="Name of the run.", pattern=f"^{_NAME.pattern}$", examples=["mlp-3"])]

router = v1_router()


@router.get(
    "/splits/{split:name}/predictions",
    tags=["predictions"],
    summary="Runs, side by side",
    responses={200: {"model": bodies.RunList, **named("Cache-Control", *OF_JSON)}, **problem_replies(*_OF_KEPT)},
)
async def runs(split: SplitName, service: CurrentService, parameters: Pinned) -> Response:
    """All runs published for this split as it is, by mean absolute error."""
    served, kept = service.split(split, parameters.fingerprint), _kept(service)
    return ReadableJson(await to_thread.run_sync(runs_of, kept, served), headers=_FRESH)


def runs_of(kept: Runs, split: Split) -> bodies.RunList:
    """All runs of a split, that with the least mean absolute error first. Reads files: not for the event loop."""
    reports = kept.reports(split.fingerprint)
    short = (bodies.Run.model_validate(report.model_dump(include=set(bodies.Run.model_fields))) for report in reports)
    ordered = sorted(short, key=lambda run: (run.errors.mae, run.name))
    return bodies.RunList(split=split.name, fingerprint=split.fingerprint, runs=tuple(ordered))


@router.put(
    "/splits/{split:name}/predictions/{name}",
    tags=["predictions"],
    summary="Publish a run",
    responses={
        200: {"model": bodies.RunReport, **named("Cache-Control", *OF_JSON)},
        **problem_replies(
            *_OF_KEPT,
            ErrorCode.PAYLOAD_TOO_LARGE,
            ErrorCode.BODY_TIMEOUT,
            ErrorCode.STATE_FULL,
            ErrorCode.STORAGE_FAILED,
            ErrorCode.OVERLOADED,
        ),
    },
    openapi_extra={"requestBody": _BODY},
)
async def publish(split: SplitName, name: RunName, request: Request, service: CurrentService, parameters: Pinned) -> Response:
    """What a model predicts of the samples: joined to them, judged, and kept in place of an earlier run of this name.

    Not every sample needs a row. What does not match counts for nothing, and the reply says how much that is.
    """
    served, kept = service.split(split, parameters.fingerprint), _kept(service)
    _check(name)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in TABLES:
        raise InvalidParameter(f"Content-Type is {media_type or 'not given'}; it must be one of {', '.join(TABLES)}")
    refusal = f"the body is larger than {MAX_BODY_BYTES} bytes; send `index` instead of `file_path`, or Parquet"
    body = await service.arrivals.read(request, MAX_BODY_BYTES, refusal)

    def keep() -> bodies.RunReport:
        found = read_predictions(body, media_type, served)
        report = judged(name, served, found)
        told = tuple(path for path in report.unknown.examples if not service.versions.is_listed(path))
        report = report.model_copy(update={"unknown": report.unknown.model_copy(update={"examples": told})})
        kept.keep(report, found.values)
        if served.fingerprint in service.versions.forgotten:  # meanwhile; what was kept before that is deleted by forgetting.py
            kept.delete(served.fingerprint, name)
            raise Forgotten(split, served.fingerprint)
        return report

    try:
        return ReadableJson(await to_thread.run_sync(keep, limiter=service.reading), headers=_FRESH)
    except OSError as error:
        logger.error("cannot keep the run %r of split %r: %s", name, split, error)
        raise StorageFailed("the service cannot write the run to its disk; its log says why; send it again later") from error
    finally:
        service.arrivals.release(request)


@router.get(
    "/splits/{split:name}/predictions/{name}",
    tags=["predictions"],
    summary="A run",
    responses={200: {"model": bodies.RunReport, **named("Cache-Control", *OF_JSON)}, **problem_replies(*_OF_ONE)},
)
async def run(split: SplitName, name: RunName, service: CurrentService, parameters: Pinned) -> Response:
    """R2, errors in all, by CPS decile and by folder, and the recordings that were missed by most."""
    report, _ = await found_run(service, service.split(split, parameters.fingerprint), name)
    return ReadableJson(report, headers=_FRESH)


@router.get(
    "/splits/{split:name}/predictions/{name}/points",
    tags=["predictions"],
    summary="True against predicted, to draw",
    responses={200: {"model": bodies.RunPoints, **named("Cache-Control", *OF_JSON)}, **problem_replies(*_OF_ONE)},
)
async def run_points(split: SplitName, name: RunName, service: CurrentService, parameters: Pinned) -> Response:
    """At most 5,000 samples, evenly spread over those with a prediction."""
    served = service.split(split, parameters.fingerprint)
    _, predicted = await found_run(service, served, name)
    return CompactJson(points(name, served, predicted), headers=_FRESH)


@router.delete(
    "/splits/{split:name}/predictions/{name}",
    tags=["predictions"],
    summary="Delete a run",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is gone."}, **problem_replies(*_OF_ONE, ErrorCode.STORAGE_FAILED)},
)
async def delete(split: SplitName, name: RunName, service: CurrentService, parameters: Pinned) -> Response:
    """For ever."""
    served, kept = service.split(split, parameters.fingerprint), _kept(service)
    if not await to_thread.run_sync(kept.delete, served.fingerprint, _check(name)):
        raise _no_run(split, name)
    return Response(status_code=204)


async def found_run(service: Service, split: Split, name: str) -> tuple[bodies.RunReport, Doubles]:
    """A run of the split, and what it predicts, (N,), NaN where nothing. Raises NotConfigured, InvalidParameter, NotFound."""
    found = await to_thread.run_sync(_kept(service).find, split.fingerprint, _check(name))
    if found is None:
        raise _no_run(split.name, name)
    return found


def _kept(service: Service) -> Runs:
    if service.runs is None:
        raise NotConfigured("this service keeps no predictions; have it started with a folder for them: --state-dir")
    return service.runs


def _check(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidParameter(f"name is {name[:80]!r}; it must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _no_run(split: str, name: str) -> NotFound:
    return NotFound(f"split {split!r} has no run {name!r}; GET /v1/splits/{{split}}/predictions lists them")
