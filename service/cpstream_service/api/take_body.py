"""The body of take: which indices the client asks for, as JSON or as raw little-endian int64."""

import json
from typing import Any

import numpy as np
from anyio import to_thread
from starlette.requests import Request

from cpstream_client.contract import wire
from cpstream_client.contract.plan import Indices

from ..errors import IndexOutOfRange, InvalidParameter, PayloadTooLarge

MAX_BODY_BYTES = 64 * 1024**2
"""8 million raw indices."""

BODY_SCHEMA: dict[str, Any] = {
    "required": True,
    "description": "The indices, in the order in which the samples are wanted; repeats are allowed.",
    "content": {
        wire.JSON: {
            "schema": {
                "type": "object",
                "required": ["indices"],
                "additionalProperties": False,
                "properties": {"indices": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
            },
            "example": {"indices": [7, 0, 7, 42]},
        },
        wire.OCTET_STREAM: {
            "schema": {"type": "string", "format": "binary"},
            "description": "The same as raw little-endian int64, 8 bytes an index: much faster for many.",
        },
    },
}


async def read_indices(request: Request, num_samples: int) -> Indices:
    """The indices of the body. (B,) int64. Raises InvalidParameter, IndexOutOfRange, PayloadTooLarge."""
    body = await _read(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == wire.OCTET_STREAM:
        if len(body) % 8:
            raise InvalidParameter(f"the body has {len(body)} bytes; raw indices are little-endian int64, 8 bytes each")
        indices = np.frombuffer(body, "<i8").astype(np.int64, copy=False)
    else:
        indices = await to_thread.run_sync(_parse, body)
    if len(indices) and not (indices.min() >= 0 and indices.max() < num_samples):
        position = int(((indices < 0) | (indices >= num_samples)).argmax())
        raise IndexOutOfRange(
            f"index {indices[position]} (number {position} of the body's) is outside the split; indices: 0 to {num_samples - 1}"
        )
    return indices


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes; ask for fewer indices at a time")
    return bytes(body)


def _parse(body: bytes) -> Indices:
    example = '{"indices": [7, 0, 42]}'
    try:
        parsed = json.loads(body)
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, and integers of thousands of digits
        raise InvalidParameter(f"the body is not JSON ({error}); send {example}") from error
    except RecursionError as error:
        raise InvalidParameter(f"the body is nested too deeply; send {example}") from error
    if not isinstance(parsed, dict) or set(parsed) != {"indices"} or not isinstance(parsed["indices"], list):
        raise InvalidParameter(f"the body must be a JSON object with one member, indices, a list of integers: {example}")
    indices = parsed["indices"]
    for position, index in enumerate(indices):
        if type(index) is not int:  # a bool is an int, too
            raise InvalidParameter(f"indices[{position}] is {json.dumps(index)[:80]}; it must be a whole number")
    try:
        return np.array(indices, dtype=np.int64)
    except OverflowError as error:
        raise InvalidParameter("indices must be whole numbers of 64 bits, and one is larger") from error
