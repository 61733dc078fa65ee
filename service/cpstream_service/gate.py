"""Who may ask under /v1, and when: the bearer token, and the refusal of new work while the service drains."""

import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cpstream_client.wire import API_PREFIX

from .problems import Draining, RequestError, Unauthorized, problem_response


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
