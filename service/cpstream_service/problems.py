"""Errors as RFC 9457 problem details: one body for everything that goes wrong, framework errors included.

Routes raise the exceptions below; `_CODES` maps each to its wire.ErrorCode, and with it to a status. `type` is a reference,
relative to the service, to what MEANINGS says of the code; `instance` is the path asked for. Nothing of the server's disk, no
traceback.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client import wire
from cpstream_client.wire import ErrorCode

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


class RequestError(Exception):
    """A request that cannot be answered. extra: further members of the problem; headers: further headers of the reply."""

    def __init__(self, detail: str, *, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail, self.extra, self.headers = detail, dict(extra or {}), dict(headers or {})


class UnknownSplit(RequestError):
    """The split in the path is not served."""

    def __init__(self, split: str, served: Sequence[str]) -> None:
        super().__init__(f"split {shown(split)} is not served; splits: {', '.join(served)}")


class NotFound(RequestError):
    """Nothing is served under this path."""


class InvalidParameter(RequestError):
    """A parameter or the body is malformed or out of range."""


class IndexOutOfRange(RequestError):
    """A sample index, offset or step outside the split."""


class RangeNotSatisfiable(RequestError):
    """The Range header asks for bytes beyond the end."""


class DatasetChanged(RequestError):
    """The fingerprint pinned by the request is not the one served."""

    def __init__(self, split: str, expected: str, actual: str) -> None:
        super().__init__(
            f"split {split!r} has fingerprint {actual}, not {expected} as pinned by the request: the data was replaced; "
            "start again with the new fingerprint, or have the old data served",
            extra={"expected": expected, "actual": actual},
        )


class Unauthorized(RequestError):
    """No bearer token, or a wrong one."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class NotAcceptable(RequestError):
    """The Accept header excludes every representation that there is."""


class PayloadTooLarge(RequestError):
    """The request's body or its reply exceeds a limit."""


class Overloaded(RequestError):
    """Too many batch streams are open."""


class Draining(RequestError):
    """The service is shutting down."""


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
    problem = wire.Problem(
        type=problem_type(code),
        title=code.title,
        status=code.status,
        detail=detail,
        instance=target_of(scope),
        code=code.code,
        request_id=scope.get("state", {}).get("request_id", ""),
        extra=extra,
    )
    body = (json.dumps(problem.to_json(), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
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


def shown(value: object) -> str:
    """A value of the client's for a detail, not too much of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def install(app: FastAPI) -> None:
    """Have the app answer every exception that reaches it with a problem."""

    async def handle(request: Request, error: Exception) -> Response:
        return problem_response(request.scope, error)

    for kind in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


class InternalErrors:
    """ASGI middleware: what no handler expected is logged, and answered with 500 where the reply has not begun."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            logger.debug("the client went away during its request", extra=scope.get("state", {}))
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # uvicorn logs it and closes the connection, so that the client sees a cut
            logger.exception("%s %s failed, request %s", scope["method"], scope["path"], scope["state"].get("request_id"))
            await problem_response(scope, error)(scope, receive, send)
