"""Bodies that say which samples a client asks for: of take, and of batches. Raw little-endian int64, or JSON."""

import json
from typing import Any

import numpy as np
from anyio import to_thread
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import BatchesBody, TakeBody
from cpstream_client.contract.index_batches import IndexBatches
from cpstream_client.contract.plan import Indices

from ..errors import IndexOutOfRange, InvalidParameter
from .arrivals import Arrivals

MAX_BODY_BYTES = 64 * 1024**2
"""8 million raw indices."""
MAX_JSON_BYTES = 4 * 1024**2
"""JSON is for people: a number takes ten times its size in memory, and the interpreter to itself."""
JSON_WEIGHT = 10


def _schema(kind: type[BaseModel], example: dict[str, Any], raw: str) -> dict[str, Any]:
    return {
        "required": True,
        "description": "The indices, in the order in which the samples are wanted; repeats are allowed.",
        "content": {
            wire.JSON: {"schema": kind.model_json_schema(), "example": example},
            wire.OCTET_STREAM: {
                "schema": {"type": "string", "format": "binary"},
                "description": f"The same as raw little-endian int64, 8 bytes a number{raw}: much faster for many.",
            },
        },
    }


TAKE_SCHEMA = _schema(TakeBody, {"indices": [7, 0, 7, 42]}, "")
BATCHES_SCHEMA = _schema(
    BatchesBody, {"batches": [[7, 0], [42, 7, 1]]}, ": the number of batches, the size of each, then all indices, batch after batch"
)


async def read_indices(request: Request, arrivals: Arrivals, num_samples: int) -> Indices:
    """The indices of a body of take. (B,) int64. Raises InvalidParameter, IndexOutOfRange, and as Arrivals.read."""
    body, is_raw = await _read(request, arrivals)
    if is_raw and len(body) % 8:
        raise InvalidParameter(f"the body has {len(body)} bytes; raw indices are little-endian int64, 8 bytes each")
    if is_raw:
        indices = np.frombuffer(body, "<i8").astype(np.int64, copy=False)
    else:
        parsed = await to_thread.run_sync(_parse_take, body)
        if isinstance(parsed, str):
            raise InvalidParameter(parsed)
        indices = parsed
    position = _outside(indices, num_samples)
    if position is not None:
        raise IndexOutOfRange(
            f"index {indices[position]} (number {position} of the body's) is outside the split; indices: 0 to {num_samples - 1}"
        )
    return indices


async def read_batches(request: Request, arrivals: Arrivals, num_samples: int) -> IndexBatches:
    """The indices of a body of batches. Raises InvalidParameter, IndexOutOfRange, and as Arrivals.read."""
    body, is_raw = await _read(request, arrivals)
    if is_raw:
        try:
            batches = IndexBatches.unpack(body)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
    else:
        parsed = await to_thread.run_sync(_parse_batches, body)
        if isinstance(parsed, str):
            raise InvalidParameter(parsed)
        batches = parsed
    position = _outside(batches.indices, num_samples)
    if position is not None:
        batch, number = batches.where(position)
        raise IndexOutOfRange(
            f"index {batches.indices[position]} (number {number} of batch {batch}) is outside the split; "
            f"indices: 0 to {num_samples - 1}"
        )
    return batches


async def _read(request: Request, arrivals: Arrivals) -> tuple[bytearray, bool]:
    """The body, and whether it is raw."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == wire.OCTET_STREAM:
        refusal = f"the body is larger than {MAX_BODY_BYTES} bytes; ask for fewer indices at a time"
        return await arrivals.read(request, MAX_BODY_BYTES, refusal), True
    remedy = f"send them raw ({wire.OCTET_STREAM}, little-endian int64), or ask for fewer at a time"
    refusal = f"the JSON body is larger than {MAX_JSON_BYTES} bytes; {remedy}"
    return await arrivals.read(request, MAX_JSON_BYTES, refusal, JSON_WEIGHT), False


def _outside(indices: Indices, num_samples: int) -> int | None:
    """Where the first index that is of no sample stands, if there is one."""
    if not len(indices) or (indices.min() >= 0 and indices.max() < num_samples):
        return None
    return int(((indices < 0) | (indices >= num_samples)).argmax())


# JSON. What is wrong is returned: a worker thread keeps an exception, and all that it refers to, until its next job.

_TOO_LARGE = "indices must be whole numbers of 64 bits, and one is larger"


def _parse_take(body: bytearray) -> Indices | str:
    """The indices, or why there are none."""
    try:
        indices = TakeBody.model_validate_json(body).indices
    except ValidationError as error:
        return _misfit(error, "indices", 2, "a list of integers", '{"indices": [7, 0, 42]}')
    try:
        return np.array(indices, dtype=np.int64)
    except OverflowError:
        return _TOO_LARGE


def _parse_batches(body: bytearray) -> IndexBatches | str:
    """The indices of each batch, or why there are none."""
    try:
        batches = BatchesBody.model_validate_json(body).batches
    except ValidationError as error:
        return _misfit(error, "batches", 3, "a list of lists of integers, one list a batch", '{"batches": [[7, 0], [42, 7, 1]]}')
    try:
        return IndexBatches.of([np.array(batch, dtype=np.int64) for batch in batches])
    except OverflowError:
        return _TOO_LARGE


def _misfit(error: ValidationError, member: str, depth: int, form: str, example: str) -> str:
    """depth: how long the place of an index is."""
    (wrong, *_) = error.errors(include_url=False, include_context=False)
    if wrong["type"] == "json_invalid":
        return f"the body is not JSON ({wrong['msg'].removeprefix('Invalid JSON: ')}); send {example}"
    if len(wrong["loc"]) == depth:
        place = "".join(f"[{at}]" for at in wrong["loc"][1:])
        return f"{member}{place} is {json.dumps(wrong['input'])[:80]}; it must be a whole number"
    return f"the body must be a JSON object with one member, {member}, {form}: {example}"
