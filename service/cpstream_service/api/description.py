"""What /openapi.json says beyond the routes themselves: introduction, tags, the token, and problems, each described once."""

from typing import Any

from fastapi import FastAPI

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import ErrorCode

from .problems import MEANINGS, problem_type

DESCRIPTION = """\
Speech embeddings aligned with their speech rate (CPS, characters per second), streamed to remote trainers.

* A **sample** is one utterance: an `embedding` of D numbers, its `cps`, and the `file_path` of its recording.
* A **split** (`train`, `dev`, `test`, ...) is a named, ordered list of samples; a sample's position in it is its `index`.
* A **fingerprint** is a hash of a split's whole content. Pin it with the `fingerprint` parameter, and a reply is of that
  data or a `409`.
* An **epoch** is fixed by `shuffle`, `seed` and `epoch`, and equals what torch's `DistributedSampler` gives. Every batch is a pure
  function of its URL and the fingerprint: any replica gives the same bytes, and a `start` resumes anywhere.

Batches travel as an [Arrow IPC stream](https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format), one record batch
each; a few of them also as JSON (`Accept: application/json`). Every error is a problem (RFC 9457, `application/problem+json`) with
a stable `code` and a `detail` that says what was wrong with which value and what to do. Every reply carries an `X-Request-ID`,
which the service's log has too; send your own to find it there.
"""

TAGS = [
    {"name": "splits", "description": "What is served: metadata, alignment, single rows."},
    {"name": "batches", "description": "Samples for training, in bulk."},
    {"name": "downloads", "description": "A whole split as files."},
    {"name": "health", "description": "For orchestrators and monitoring; never needs a token."},
]

Replies = dict[int | str, dict[str, Any]]

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
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        reply = replies.setdefault(code.status, {"description": "", "content": {wire.PROBLEM_JSON: problem}})
        reply["description"] = (reply["description"] + f"\n\n`{code.code}`: {MEANINGS[code]}").strip()
        reply["content"][wire.PROBLEM_JSON]["examples"][code.code] = {"$ref": f"#/components/examples/{code.code}"}
        if code.status == 503:
            reply["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return replies


def complete(app: FastAPI, *, has_token: bool) -> None:
    """Have the app's description hold what problem_replies refers to, and say where a token is needed."""
    of_routes = app.openapi

    def openapi() -> dict[str, Any]:
        description = of_routes()
        components = description["components"]
        components["schemas"]["Problem"] = problem = Problem.model_json_schema()
        problem["properties"]["code"]["enum"] = [code.code for code in ErrorCode]
        components["examples"] = {code.code: {"value": _example(code)} for code in MEANINGS}
        if has_token:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in description["paths"].items():
                for operation in operations.values() if path.startswith(wire.API_PREFIX) else ():
                    operation["security"] = [{"token": []}]
        return description

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it


def _example(code: ErrorCode) -> dict[str, object]:
    detail, extra = _EXAMPLES.get(code, ("...", {}))
    return {
        "type": problem_type(code),
        "title": code.title,
        "status": code.status,
        "detail": detail,
        "instance": f"{wire.API_PREFIX}/splits/train/batches",
        "code": code.code,
        "request_id": "3f0c2d1e9b7a4c58a1d2e3f405162738",
        **extra,
    }
