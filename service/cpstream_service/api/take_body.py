"""The body of take: which indices the client asks for, as JSON or as raw little-endian int64."""

import json
from typing import Any

import numpy as np
from anyio import to_thread
from pydantic import ValidationError
from starlette.requests import Request

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import TakeBody
from cpstream_client.contract.plan import Indices

from ..errors import IndexOutOfRange, InvalidParameter, PayloadTooLarge

MAX_BODY_BYTES = 64 * 1024**2
"""8 million raw indices."""
MAX_JSON_BYTES = 4 * 1024**2
"""JSON is for people: a number takes ten times its size in memory, and the interpreter to itself."""

_EXAMPLE = '{"indices": [7, 0, 42]}'
BODY_SCHEMA: dict[str, Any] = {
    "required": True,
    "description": "The indices, in the order in which the samples are wanted; repeats are allowed.",
    "content": {
        wire.JSON: {"schema": TakeBody.model_json_schema(), "example": {"indices": [7, 0, 7, 42]}},
        wire.OCTET_STREAM: {
            "schema": {"type": "string", "format": "binary"},
            "description": "The same as raw little-endian int64, 8 bytes an index: much faster for many.",
        },
    },
}


async def read_indices(request: Request, num_samples: int) -> Indices:
    """The indices of the body. (B,) int64. Raises InvalidParameter, IndexOutOfRange, PayloadTooLarge."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == wire.OCTET_STREAM:
        body = await _read(request, MAX_BODY_BYTES, "the body is larger than {} bytes; ask for fewer indices at a time")
        if len(body) % 8:
            raise InvalidParameter(f"the body has {len(body)} bytes; raw indices are little-endian int64, 8 bytes each")
        indices = np.frombuffer(body, "<i8").astype(np.int64, copy=False)
    else:
        remedy = f"send them raw ({wire.OCTET_STREAM}, little-endian int64), or ask for fewer at a time"
        body = await _read(request, MAX_JSON_BYTES, "the JSON body is larger than {} bytes; " + remedy)
        parsed = await to_thread.run_sync(_parse, body)
        if isinstance(parsed, str):
            raise InvalidParameter(parsed)
        indices = parsed
    if len(indices) and not (indices.min() >= 0 and indices.max() < num_samples):
        position = int(((indices < 0) | (indices >= num_samples)).argmax())
        raise IndexOutOfRange(
            f"index {indices[position]} (number {position} of the body's) is outside the split; indices: 0 to {num_samples - 1}"
        )
    return indices


async def _read(request: Request, max_bytes: int, refusal: str) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(refusal.format(max_bytes))
    return body


def _parse(body: bytearray) -> Indices | str:
    """The indices, or why there are none: a worker thread keeps an exception, and all that it refers to, until its next job."""
    try:
        indices = TakeBody.model_validate_json(body).indices
    except ValidationError as error:
        (wrong, *_) = error.errors(include_url=False, include_context=False)
        if wrong["type"] == "json_invalid":
            return f"the body is not JSON ({wrong['msg'].removeprefix('Invalid JSON: ')}); send {_EXAMPLE}"
        if len(wrong["loc"]) == 2:
            return f"indices[{wrong['loc'][1]}] is {json.dumps(wrong['input'])[:80]}; it must be a whole number"
        return f"the body must be a JSON object with one member, indices, a list of integers: {_EXAMPLE}"
    try:
        return np.array(indices, dtype=np.int64)
    except OverflowError:
        return "indices must be whole numbers of 64 bits, and one is larger"
