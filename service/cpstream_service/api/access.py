"""Who may ask under /v1, and when: the bearer token, and the refusal of new work while the service drains."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cpstream_client.contract.wire import API_PREFIX

from ..errors import Draining, Unauthorized
from .clients import client_of
from .drain import Drain
from .routing import routed_path


class Access:
    """ASGI middleware before every route: what it refuses costs no parsing, and reads no body. Counts what the drain waits for."""

    def __init__(self, app: ASGIApp, token: str | None, drain: Drain) -> None:
        self.app, self.drain = app, drain
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan, which is open all the time
            await self.app(scope, receive, send)
            return
        path = scope["path"] = routed_path(scope)
        scope["state"]["client"] = client_of(scope)
        self.drain.open_requests += 1
        try:
            if path == API_PREFIX or path.startswith(API_PREFIX + "/"):
                self._check(scope)
            await self.app(scope, receive, send)
        finally:
            self.drain.open_requests -= 1

    def _check(self, scope: Scope) -> None:
        if self._token is not None:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not given.strip():
                raise Unauthorized("this service wants a token; send the header 'Authorization: Bearer <token>'")
            if not hmac.compare_digest(given.strip().encode("latin-1"), self._token):
                raise Unauthorized("the bearer token is wrong")
        if self.drain.draining:
            raise Draining("the service is shutting down; ask another replica, or again when it is back")
