"""The server's half of a stream, measured by itself: what `cpstream doctor` asks for."""

from contextlib import suppress
from typing import Annotated

from anyio import to_thread
from fastapi import Query, Request
from starlette.responses import Response

from cpstream_client.contract import bodies
from cpstream_client.contract.wire import ErrorCode
from cpstream_client.cpus import cpu_limit

from ...batches.measure import measure
from ...settings import ServeSettings
from ...tls import Cipher, server_context
from ..description import OF_JSON, named, problem_replies
from ..json_replies import ReadableJson
from ..parameters import BatchParameters
from ..state import CurrentService
from .batches import plan_errors
from .common import COMMON, SplitName, v1_router

router = v1_router()


@router.get(
    "/splits/{split:name}/measure",
    tags=["batches"],
    summary="How fast the service makes batches",
    responses={
        200: {"model": bodies.Measurement, **named("Cache-Control", *OF_JSON)},
        **problem_replies(
            *COMMON,
            ErrorCode.PAYLOAD_TOO_LARGE,
            ErrorCode.TOO_MANY_STREAMS,
            ErrorCode.OVERLOADED,
            ErrorCode.STORAGE_FAILED,
            ErrorCode.DRAINING,
        ),
    },
)
async def measured(
    split: SplitName, request: Request, service: CurrentService, parameters: Annotated[BatchParameters, Query()]
) -> Response:
    """Make the batches that `batches` would, for half a second, and send them to a socket of the service's own.

    What comes out is the most that one stream of this worker could give now, beside whatever else it does. A slower one is held up
    by the network or by its client.
    """
    state = request.scope["state"]
    served, query = service.versions.split(split, parameters.fingerprint), parameters.query()
    with plan_errors():
        query.steps(served.info.num_samples)
    cipher = await to_thread.run_sync(_cipher, service.settings)
    found = await measure(service.batch_server, served, query, state["client"], state["max_streams"], cipher)
    body = bodies.Measurement(
        split=split,
        fingerprint=served.fingerprint,
        seconds=found.seconds,
        samples=found.samples,
        batches=found.batches,
        bytes=found.nbytes,
        gather_seconds=found.gather_s,
        wait_seconds=found.wait_s,
        send_seconds=found.send_s,
        cpu_seconds=found.cpu_s,
        cpus=cpu_limit(),
        throttled_seconds=found.throttled_s,
        other_streams=found.other_streams,
        allowed_bytes_per_second=state["rights"].max_bytes_per_s,
        in_memory=service.batch_server.fits(served),
    )
    return ReadableJson(body, headers={"Cache-Control": "no-store"})


def _cipher(settings: ServeSettings) -> Cipher | None:
    """What replies are encrypted by, if they are."""
    if settings.tls_cert_file is None:
        return None
    with suppress(ValueError):  # its files are not what they were, and the service goes on with those that it has read
        return Cipher(server_context(settings.tls_cert_file, settings.tls_key_file, None))
    return None
