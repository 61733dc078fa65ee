"""Errors as RFC 9457 problem details: one body for everything that goes wrong, framework errors included.

Routes raise RequestErrors, each of which has a wire.ErrorCode, and with it a status. `type` is a reference, relative to the
service, to what MEANINGS says of the code; `instance` is what was asked for. Nothing of the server's disk, no traceback.
"""

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.contract import wire
from cpstream_client.contract.bodies import Problem
from cpstream_client.contract.wire import ErrorCode

from ..errors import InvalidParameter, MethodNotAllowed, NotFound, RequestError, Unauthorized, shown
from .json_replies import ReadableJson
from .login import login_form
from .negotiation import target_of
from .pages import is_page, problem_page, wants_page
from .parameters import explained

logger = logging.getLogger("cpstream.service")

TYPE_PREFIX = "/problems/"
RETRY_AFTER_S = 1

MEANINGS: dict[ErrorCode, str] = {
    ErrorCode.UNKNOWN_SPLIT: "No split of this name is served. The detail lists those that are; so does GET /v1/splits.",
    ErrorCode.NOT_FOUND: "No resource has this path (GET / and /docs list what is served), or no sample the file_path asked for.",
    ErrorCode.METHOD_NOT_ALLOWED: "The path exists, but not for this method. The Allow header lists the methods that it has.",
    ErrorCode.INVALID_PARAMETER: "A parameter is unknown, repeated, malformed or out of range, or the body is. The detail names "
    "each, its value and what it must be. Asking again cannot help.",
    ErrorCode.INDEX_OUT_OF_RANGE: "An index, offset or step lies outside the split or the epoch. The detail says where they end.",
    ErrorCode.RANGE_NOT_SATISFIABLE: "The Range header asks for bytes past the end of the file. Content-Range says how long it is.",
    ErrorCode.DATASET_CHANGED: "The data served is not the data that the fingerprint parameter pins. The members expected and "
    "actual hold both fingerprints. Batches of the new data would not continue the old epoch.",
    ErrorCode.FORGOTTEN: "The data that the fingerprint parameter pins holds a recording that was to be forgotten, and is not "
    "served. Asking again cannot help: begin the next epoch on the current data, and delete what is kept of this.",
    ErrorCode.UNAUTHORIZED: "This service wants a token: send the header `Authorization: Bearer <token>`.",
    ErrorCode.FORBIDDEN: "The token lacks the scope that this needs; or no token is set, and what changes something is taken "
    "from the service's own machine alone; or a web page of another site sent it. The detail says which.",
    ErrorCode.NOT_ACCEPTABLE: "The Accept header excludes every representation of this resource. The detail lists them.",
    ErrorCode.PAYLOAD_TOO_LARGE: "The request's body, or the reply to it, exceeds a limit of this service. The detail says which, "
    "and how to ask for less at a time.",
    ErrorCode.BODY_TIMEOUT: "The request's body stopped arriving, or arrived too slowly. Send it again, or less at a time.",
    ErrorCode.TOO_MANY_STREAMS: "As many batch streams of one client (one token or address) are open as the service allows. Ask "
    "again after Retry-After seconds, or over fewer connections. Behind a proxy all clients count as one, unless they have tokens "
    "of their own, or the service trusts the proxy.",
    ErrorCode.TOO_MANY_BYTES: "The replies to this token take all of the bytes a second that it may be sent. Ask again after "
    "Retry-After seconds, or ask for a token that may have more.",
    ErrorCode.OVERLOADED: "As many batch streams are open, or bytes of request bodies held, as this service allows. Ask again "
    "after Retry-After seconds, or ask another replica.",
    ErrorCode.STORAGE_FAILED: "The disk beside the snapshot has no room for what the reply is made from, such as the float16 copy. "
    "The service's log says where. Ask again after Retry-After seconds, or for float32.",
    ErrorCode.STATISTICS_FAILED: "The process that computes the statistics of the splits failed as often as it is tried. The "
    "service's log says why, each time; when that is mended, restart the service.",
    ErrorCode.STATE_FULL: "As much is kept as this service allows, runs of predictions say. Delete some first.",
    ErrorCode.NOT_READY: "The data is still being loaded, or the version that the fingerprint pins is being opened. Ask again "
    "after Retry-After seconds; GET /v1/versions says how far it is.",
    ErrorCode.NOT_CONFIGURED: "The service was started without what this needs. The detail names it.",
    ErrorCode.RELOADING: "The current data holds a recording that is to be forgotten, and the data without it is being loaded. Ask "
    "again after Retry-After seconds.",
    ErrorCode.DRAINING: "The service has been told to stop and lets open streams finish. Ask another replica, or again after "
    "Retry-After seconds.",
    ErrorCode.INTERNAL: "A defect of the service or a failing disk. The service's log has the cause under the request_id.",
}
"""What each code means and what to do about it, for people: served at the `type` of a problem, and in docs/api.md."""


def problem_type(code: ErrorCode) -> str:
    """The `type` member: a reference, relative to the service, to the explanation of the code."""
    return TYPE_PREFIX + code.code


class ProblemReply(ReadableJson):
    """The reply to an exception, as application/problem+json."""

    media_type = wire.PROBLEM_JSON

    def __init__(self, scope: Scope, error: Exception) -> None:
        code, detail, headers, extra = (
            ErrorCode.INTERNAL,
            "the service failed to answer; its log has the cause under this request_id",
            {},
            {},
        )
        if isinstance(error, RequestError):
            code, detail, headers, extra = error.code, error.detail, error.headers, error.extra
        headers = {"Cache-Control": "no-store", **headers}
        if code.status in (429, 503):
            headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        problem = Problem(
            type=problem_type(code),
            title=code.title,
            status=code.status,
            detail=detail,
            instance=target_of(scope),
            code=code.code,
            request_id=scope["state"]["request_id"],
            **extra,
        )
        self.problem = problem
        super().__init__(problem, code.status, headers)
        scope["state"]["code"] = code.code  # for the log and the metrics


def problem_reply(scope: Scope, error: Exception) -> Response:
    """The reply to an exception: a page, where somebody asked for one; and wherever that was, the form for a token."""
    reply = ProblemReply(scope, error)
    if isinstance(error, Unauthorized) and scope["method"] in ("GET", "HEAD") and wants_page(Request(scope)):
        return login_form(scope)
    if is_page(scope["path"]) and wants_page(Request(scope)):
        try:
            kept = ("retry-after", "www-authenticate", "allow", "cache-control")
            return problem_page(scope, reply.problem, {name: reply.headers[name] for name in kept if name in reply.headers})
        except Exception:
            logger.exception("cannot make a page of a problem, request %s", scope["state"]["request_id"])
    return reply


class Problems:
    """ASGI middleware: every exception becomes a problem, where the reply has not begun. What no handler expected is logged."""

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
            return
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # uvicorn logs it and closes the connection, so that the client sees a cut
            if not isinstance(error, RequestError):
                logger.exception("%s %s failed, request %s", scope["method"], scope["path"], scope["state"]["request_id"])
            reply = problem_reply(scope, error)
        else:
            return
        await reply(scope, receive, send)


def install(app: FastAPI) -> None:
    """Have the framework's own refusals leave as problems, too."""

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return problem_reply(request.scope, _in_our_words(request.scope, error))

    async def not_valid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem_reply(request.scope, InvalidParameter(explained(error.errors())))

    app.add_exception_handler(HTTPException, not_routed)
    app.add_exception_handler(RequestValidationError, not_valid)


def _in_our_words(scope: Scope, error: HTTPException) -> RequestError:
    path = shown(scope["path"])
    if error.status_code == 404:
        return NotFound(f"nothing is served at {path}; GET / lists what is")
    if error.status_code == 405:
        methods = {name for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE for name in route.methods}
        allowed = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
        return MethodNotAllowed(f"{scope['method']} is not allowed at {path}; allowed: {allowed}", headers={"Allow": allowed})
    return InvalidParameter(str(error.detail))
