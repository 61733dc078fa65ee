"""What /openapi.json says beyond the routes themselves: introduction, tags, the token, and problems, each described once."""

from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import ErrorCode

from ..tokens import TokenScope
from .problems import MEANINGS, problem_type
from .rights import CHANGING
from .routing import Route

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
    {"name": "figures", "description": "What a split looks like: statistics, a projection, neighbours."},
    {"name": "batches", "description": "Samples for training, in bulk."},
    {"name": "predictions", "description": "What models made of the samples: published, compared, deleted."},
    {"name": "downloads", "description": "A whole split as files."},
    {"name": "client", "description": "The Python client that fits; never needs a token."},
    {"name": "health", "description": "For orchestrators and monitoring."},
]

Replies = dict[int | str, dict[str, Any]]

HEADERS = {
    wire.REQUEST_ID_HEADER: "By which the service's log names the request: the client's own, or a new one.",
    wire.CONTRACT_HEADER: "`contract=1`, the form of requests and replies; and the name of the client below `/client` that fits.",
    wire.DIGEST_HEADER: "RFC 9530's digest of a JSON body, by SHA-256.",
    wire.LOCATION_HEADER: "The path and query that a JSON body answers.",
    "ETag": "Strong: of content and query, hence the same on every replica.",
    "Cache-Control": "`no-transform`: compressing floats is not worth it. `immutable` where the fingerprint is pinned.",
    "Vary": "`Accept`, by which the representation is chosen.",
    "Accept-Ranges": "`bytes`.",
    "Content-Disposition": "A file name to save it under.",
    "Content-Range": "Which bytes these are, of how many.",
    "Location": "Where to look what has become of it, relative.",
    "Retry-After": "Seconds.",
    "WWW-Authenticate": "`Bearer`; for browsers `Basic`, too, with the token as the password.",
}
"""Of replies, beside those that every reply of HTTP has. The first two come with each."""
CACHED = ("Cache-Control", "ETag", "Vary")
OF_JSON = (wire.DIGEST_HEADER, wire.LOCATION_HEADER)
CURRENT: dict[str, Any] = {"description": "The client's copy (`If-None-Match`) is current."}
"""The reply 304 of what is CACHED."""
_OF_PROBLEMS = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


def named(*names: str) -> dict[str, Any]:
    """The headers of a reply, for its description."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}


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
        headers = named("Cache-Control", wire.DIGEST_HEADER, *_OF_PROBLEMS.get(code.status, ()))
        reply = replies.setdefault(code.status, {"description": "", "content": {wire.PROBLEM_JSON: problem}, **headers})
        reply["description"] = (reply["description"] + f"\n\n`{code.code}`: {MEANINGS[code]}").strip()
        reply["content"][wire.PROBLEM_JSON]["examples"][code.code] = {"$ref": f"#/components/examples/{code.code}"}
    return replies


def complete(app: FastAPI, *, has_token: bool, labels: Callable[[], Collection[str]] = tuple) -> None:
    """Have the app's description hold what the routes' own refers to, and say what depends on the service.

    That is where a token is needed, and the columns that there are: labels() are those of all splits that are served now.
    """
    of_routes, described = app.openapi, frozenset[str]()
    routes = [route for route in app.routes if isinstance(route, Route)]

    def openapi() -> dict[str, Any]:
        nonlocal described
        served = frozenset(labels())
        if served != described:
            app.openapi_schema, described = None, served
        description = of_routes()
        components = description["components"]
        if "headers" in components:  # FastAPI keeps what it has made, and so what is completed below
            return description
        components["schemas"]["Problem"] = problem = Problem.model_json_schema()
        problem["properties"]["code"]["enum"] = [code.code for code in ErrorCode]
        components["examples"] = {code.code: {"value": _example(code)} for code in MEANINGS}
        kinds = {"Retry-After": "integer"}
        components["headers"] = {
            name: {"description": text, "schema": {"type": kinds.get(name, "string")}} for name, text in HEADERS.items()
        }
        if has_token:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        needed = {(route.path_format, method.lower()): route.needs for route in routes for method in route.methods or ()}
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                _complete_operation(operation, needed[path, method], has_token, served)
        components["responses"] = _shared(description["paths"])
        return description

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it


def _complete_operation(operation: dict[str, Any], needed: TokenScope | None, has_token: bool, labels: Collection[str]) -> None:
    if has_token and needed is not None:
        operation["security"] = [{"token": [needed]}]
    else:
        operation["responses"].pop("401", None)
        if needed not in CHANGING:
            operation["responses"].pop("403", None)
    for reply in operation["responses"].values():
        reply.setdefault("headers", {}).update(named(wire.REQUEST_ID_HEADER, wire.CONTRACT_HEADER)["headers"])
    for parameter in operation.get("parameters", ()):
        parameter["schema"].pop("description", None)  # it stands in the parameter itself
        if parameter["name"] == "columns":
            name = f" *({'|'.join(wire.columns_of(labels))}) *"
            parameter["schema"]["pattern"] = f"^{name}(,{name})*$"
        if parameter["name"] == "sort":
            parameter["schema"]["enum"] = ["index", "file_path", "cps", *sorted(labels)]


def _shared(paths: dict[str, Any]) -> dict[str, Any]:
    """The replies that several operations have, by names of their own: each then refers to them."""
    found: dict[str, Any] = {}
    for operation in (operation for operations in paths.values() for operation in operations.values()):
        for status, reply in operation["responses"].items():
            if status >= "304":
                codes = reply.get("content", {}).get(wire.PROBLEM_JSON, {}).get("examples", {})
                name = "-".join([status, *codes])
                found[name] = reply
                operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}
    return found


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
