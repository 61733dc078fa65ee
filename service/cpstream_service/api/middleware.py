"""Who may ask under /v1, and when: the bearer token, and the refusal of new work while the service drains."""

import hmac
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.contract.wire import API_PREFIX, DIGEST_HEADER, JSON, LOCATION_HEADER, PROBLEM_JSON, content_digest

from ..errors import Draining, RequestError, Unauthorized
from .problems import problem_response, target_of

logger = logging.getLogger("cpstream.service")


class Gate:
    """ASGI middleware before every route: what it refuses costs no parsing, and reads no body."""

    def __init__(self, app: ASGIApp, token: str | None, is_draining: Callable[[], bool]) -> None:
        self.app, self.is_draining = app, is_draining
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == API_PREFIX or path.startswith(API_PREFIX + "/")):
            try:
                self._check(scope)
            except RequestError as error:
                await problem_response(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if self._token is not None:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not given.strip():
                raise Unauthorized("this service wants a token; send the header 'Authorization: Bearer <token>'")
            if not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
                raise Unauthorized("the bearer token is wrong")
        if self.is_draining():
            raise Draining("the service is shutting down; ask another replica, or again when it is back")


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


class Digests:
    """ASGI middleware: Content-Digest on JSON and problems that are sent in one piece, Content-Location where they succeed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None

        async def watch(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                media_type = MutableHeaders(scope=message).get("content-type", "").partition(";")[0]
                if media_type in (JSON, PROBLEM_JSON):
                    start = message  # until the body is known
                    return
            elif start is not None:
                if not message.get("more_body", False):
                    headers = MutableHeaders(scope=start)
                    headers[DIGEST_HEADER] = content_digest(message.get("body", b""))
                    if start["status"] == 200:
                        headers[LOCATION_HEADER] = target_of(scope)
                await send(start)
                start = None
            await send(message)

        await self.app(scope, receive, watch if scope["type"] == "http" else send)


Answer = Callable[[Request], Awaitable[Response]]
MAX_REMEMBERED = 1024

_Key = tuple[str, str, bytes, bytes]


class Shortcuts:
    """What answers requests of the same method, path, query and Accept. For one app, whose data never changes."""

    def __init__(self) -> None:
        self._answers: OrderedDict[_Key, tuple[Answer, object]] = OrderedDict()

    def remember(self, request: Request, answer: Answer) -> None:
        """From now on have `answer` called for requests like this one, which the router has let through."""
        self._answers[_key(request.scope)] = answer, request.scope.get("route")
        if len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware to stand behind every check of who may ask."""

        async def shortcut(scope: Scope, receive: Receive, send: Send) -> None:
            known = self._answers.get(_key(scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
            if known is None:
                await app(scope, receive, send)
                return
            answer, scope["route"] = known
            try:
                response = await answer(Request(scope, receive))
            except RequestError as error:
                response = problem_response(scope, error)
            await response(scope, receive, send)

        return shortcut


def _key(scope: Scope) -> _Key:
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return scope["method"], scope["path"], scope["query_string"], accept
