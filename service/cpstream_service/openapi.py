"""What the OpenAPI description says of replies."""

from typing import Any

from cpstream_client import wire
from cpstream_client.wire import ErrorCode

from .problems import MEANINGS, problem_type

Replies = dict[int | str, dict[str, Any]]

_PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "description": "RFC 9457 problem details. Further members may stand beside these.",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "Where the code is explained, relative to the service."},
        "title": {"type": "string", "description": "The kind of error, in a few words; constant for the code."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What was wrong with this request, and the remedy. For people: do not parse."},
        "instance": {"type": "string", "description": "The path asked for."},
        "code": {"type": "string", "enum": [code.code for code in ErrorCode], "description": "For programs: choose by this."},
        "request_id": {"type": "string", "description": "The X-Request-ID, under which the service's log has the request."},
    },
}
_EXAMPLES: dict[ErrorCode, tuple[str, dict[str, str]]] = {
    ErrorCode.UNKNOWN_SPLIT: ("split 'trian' is not served; splits: dev, test, train", {}),
    ErrorCode.INVALID_PARAMETER: ("batch_size is '0'; it must be 1 or more", {}),
    ErrorCode.DATASET_CHANGED: (
        "split 'train' has fingerprint 5d0f..., not 9a1c... as pinned by the request: the data was replaced; ...",
        {"expected": "9a1c...", "actual": "5d0f..."},
    ),
}


def problem_replies(*codes: ErrorCode) -> Replies:
    """The error replies of a route, for FastAPI's `responses`; codes that share a status are described together."""
    replies: Replies = {}
    for code in codes:
        detail, extra = _EXAMPLES.get(code, ("...", {}))
        example = {
            "type": problem_type(code),
            "title": code.title,
            "status": code.status,
            "detail": detail,
            "instance": f"{wire.API_PREFIX}/splits/train/batches",
            "code": code.code,
            "request_id": "3f0c2d1e9b7a4c58a1d2e3f405162738",
            **extra,
        }
        reply = replies.setdefault(
            code.status, {"description": "", "content": {wire.PROBLEM_JSON: {"schema": _PROBLEM_SCHEMA, "examples": {}}}}
        )
        reply["description"] = (reply["description"] + f"\n\n`{code.code}`: {MEANINGS[code]}").strip()
        reply["content"][wire.PROBLEM_JSON]["examples"][code.code] = {"value": example}
        if code.status == 503:
            reply["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return replies
