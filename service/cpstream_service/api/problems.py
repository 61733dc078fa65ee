"""Errors as RFC 9457 problem details: one body for everything that goes wrong, framework errors included.

Routes raise the exceptions below; `_CODES` maps each to its wire.ErrorCode, and with it to a status. `type` is a reference,
relative to the service, to what MEANINGS says of the code; `instance` is the path asked for. Nothing of the server's disk, no
traceback.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import ErrorCode

from ..errors import (
    DatasetChanged,
    Draining,
    IndexOutOfRange,
    InvalidParameter,
    NotAcceptable,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RangeNotSatisfiable,
    RequestError,
    Unauthorized,
    UnknownSplit,
    shown,
)

logger = logging.getLogger("cpstream.service")

TYPE_PREFIX = "/problems/"
RETRY_AFTER_S = 1

MEANINGS: dict[ErrorCode, str] = {
    ErrorCode.UNKNOWN_SPLIT: "No split of this name is served. The detail lists those that are; so does GET /v1/splits.",
    ErrorCode.NOT_FOUND: "No resource has this path. GET / and /docs list what is served.",
    ErrorCode.METHOD_NOT_ALLOWED: "The path exists, but not for this method. The Allow header lists the methods that it has.",
    ErrorCode.INVALID_PARAMETER: "A parameter is unknown, repeated, malformed or out of range, or the body is. The detail names "
    "each, its value and what it must be. Asking again cannot help.",
    ErrorCode.INDEX_OUT_OF_RANGE: "An index, offset or step lies outside the split or the epoch. The detail says where they end.",
    ErrorCode.RANGE_NOT_SATISFIABLE: "The Range header asks for bytes past the end of the file. Content-Range says how long it is.",
    ErrorCode.DATASET_CHANGED: "The data served is not the data that the fingerprint parameter pins. The members expected and "
    "actual hold both fingerprints. Batches of the new data would not continue the old epoch.",
    ErrorCode.UNAUTHORIZED: "This service wants a token: send the header `Authorization: Bearer <token>`.",
    ErrorCode.NOT_ACCEPTABLE: "The Accept header excludes every representation of this resource. The detail lists them.",
    ErrorCode.PAYLOAD_TOO_LARGE: "The request's body, or the reply to it, exceeds a limit of this service. The detail says which, "
    "and how to ask for less at a time.",
    ErrorCode.OVERLOADED: "As many batch streams are open as this service allows. Ask again after Retry-After seconds, or ask "
    "another replica.",
    ErrorCode.NOT_READY: "The data is still being loaded. Ask again after Retry-After seconds.",
    ErrorCode.DRAINING: "The service has been told to stop and lets open streams finish. Ask another replica, or again after "
    "Retry-After seconds.",
    ErrorCode.INTERNAL: "A defect of the service or a failing disk. The service's log has the cause under the request_id.",
}
"""What each code means and what to do about it, for people: served at the `type` of a problem, and in docs/api.md."""


_CODES: dict[type[Exception], ErrorCode] = {
    UnknownSplit: ErrorCode.UNKNOWN_SPLIT,
    NotFound: ErrorCode.NOT_FOUND,
    InvalidParameter: ErrorCode.INVALID_PARAMETER,
    RequestValidationError: ErrorCode.INVALID_PARAMETER,
    IndexOutOfRange: ErrorCode.INDEX_OUT_OF_RANGE,
    RangeNotSatisfiable: ErrorCode.RANGE_NOT_SATISFIABLE,
    DatasetChanged: ErrorCode.DATASET_CHANGED,
    Unauthorized: ErrorCode.UNAUTHORIZED,
    NotAcceptable: ErrorCode.NOT_ACCEPTABLE,
    PayloadTooLarge: ErrorCode.PAYLOAD_TOO_LARGE,
    Overloaded: ErrorCode.OVERLOADED,
    Draining: ErrorCode.DRAINING,
}
_FRAMEWORK_CODES = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED, 413: ErrorCode.PAYLOAD_TOO_LARGE}


def problem_type(code: ErrorCode) -> str:
    """The `type` member: a reference, relative to the service, to the explanation of the code."""
    return TYPE_PREFIX + code.code


def problem_response(scope: Scope, error: Exception) -> Response:
    """The reply to an exception, as application/problem+json."""
    code, headers, extra = ErrorCode.INTERNAL, {}, {}
    detail = "the service failed to answer; its log has the cause under this request_id"
    if isinstance(error, RequestError):
        code, detail, headers, extra = _CODES[type(error)], error.detail, error.headers, error.extra
    elif isinstance(error, RequestValidationError):
        code, detail = ErrorCode.INVALID_PARAMETER, "; ".join(_invalid(entry) for entry in error.errors())
    elif isinstance(error, HTTPException):
        code, headers = _FRAMEWORK_CODES.get(error.status_code, ErrorCode.INVALID_PARAMETER), dict(error.headers or {})
        if code is ErrorCode.METHOD_NOT_ALLOWED:
            headers = {"Allow": _allowed(headers)}
        detail = _framework_detail(scope, code, headers, str(error.detail))
    if code.status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    problem = Problem(
        type=problem_type(code),
        title=code.title,
        status=code.status,
        detail=detail,
        instance=target_of(scope),
        code=code.code,
        request_id=scope.get("state", {}).get("request_id", ""),
        **extra,
    )
    body = (json.dumps(problem.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    return Response(body, code.status, {"Cache-Control": "no-store", **headers}, wire.PROBLEM_JSON)


def target_of(scope: Scope) -> str:
    """What was asked for, query included: a client sees by it that the problem answers its request as it was sent."""
    path: str = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
    query: str = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


def _framework_detail(scope: Scope, code: ErrorCode, headers: Mapping[str, str], detail: str) -> str:
    if code is ErrorCode.NOT_FOUND:
        return f"nothing is served at {shown(scope['path'])}; GET / lists what is"
    if code is ErrorCode.METHOD_NOT_ALLOWED:
        return f"{scope['method']} is not allowed at {shown(scope['path'])}; allowed: {headers['Allow']}"
    return detail


def _allowed(headers: Mapping[str, str]) -> str:
    """The methods of the path. The router names only those of the first route there, and HEAD is a route of its own."""
    methods = next((value for name, value in headers.items() if name.lower() == "allow"), "GET")
    return "GET, HEAD" if methods in ("GET", "HEAD") else methods


def _invalid(entry: Mapping[str, Any]) -> str:
    """One sentence of one entry of a pydantic validation error."""
    name = ".".join(str(part) for part in entry["loc"][1:]) or "the body"
    context = entry.get("ctx", {})
    expected = {
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number of 64 bits",
        "int_from_float": "a whole number",
        "bool_parsing": "true or false",
        "greater_than_equal": f"{context.get('ge')} or more",
        "less_than_equal": f"{context.get('le')} or less",
        "literal_error": f"one of {str(context.get('expected')).replace(' or ', ', ')}",
        "string_too_short": f"at least {context.get('min_length')} character long",
    }.get(entry["type"])
    if expected is None:
        return f"{name} is {shown(entry.get('input'))}: {entry['msg']}"
    return f"{name} is {shown(entry.get('input'))}; it must be {expected}"


def install(app: FastAPI) -> None:
    """Have the app answer every exception that reaches it with a problem."""

    async def handle(request: Request, error: Exception) -> Response:
        return problem_response(request.scope, error)

    for kind in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


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
