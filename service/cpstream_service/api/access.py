"""Who asks, and when: the token of a request, and the refusal of new work while the service drains."""

import asyncio
import time
from base64 import b64decode
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.contract.wire import API_PREFIX

from ..batches.limits import Limits
from ..errors import Draining, Forbidden, Unauthorized
from ..tokens import Token, Tokens
from . import cookies
from .allowance import Allowance
from .clients import client_of
from .drain import Drain
from .rights import ANYBODY, NOBODY
from .routing import routed_path


class Access:
    """ASGI middleware before every route: what it refuses costs no parsing, and reads no body. Counts what the drain waits for.

    tokens: called for each request, for they may change. open_routes: what needs no token; all else is refused without one, also
    what no route has. wants_certificate: whether a client must have shown a certificate; open routes need none. limits: those that
    the workers of a service share, or None.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Callable[[], Tokens],
        open_routes: Sequence[BaseRoute],
        drain: Drain,
        wants_certificate: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.app, self.drain = app, drain
        self._tokens, self._open_routes, self._wants_certificate = tokens, open_routes, wants_certificate
        self._limits = limits
        self._allowances: dict[str, Allowance] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan, which is open all the time
            await self.app(scope, receive, send)
            return
        path = scope["path"] = routed_path(scope)
        self.drain.open_requests += 1
        try:
            token = self._token(scope)
            name = token.name or None
            scope["state"].update(rights=token, token=name, client=client_of(scope, name), max_streams=token.max_streams)
            if scope["state"].get("has_cookie"):
                send = _kept_by_none_but_browsers(send)
            is_of_the_api = path == API_PREFIX or path.startswith(API_PREFIX + "/")
            if is_of_the_api and self.drain.draining:
                raise Draining("the service is shutting down; ask another replica, or again when it is back")
            if is_of_the_api and token.max_bytes_per_s is not None:
                allowance = self._allowance(token.name)
                allowance.check(token, asyncio.get_running_loop().time())
                send = allowance.paced(send, token.max_bytes_per_s)
            await self.app(scope, receive, send)
        finally:
            self.drain.open_requests -= 1

    def _allowance(self, name: str) -> Allowance:
        if name not in self._allowances:
            self._allowances[name] = Allowance(None if self._limits is None else self._limits.moment(name))
        return self._allowances[name]

    def _token(self, scope: Scope) -> Token:
        tokens = self._tokens()
        if self._wants_certificate and not scope["state"].get("has_certificate"):
            if self._is_open(scope):
                return NOBODY
            raise Forbidden("this service wants a client certificate; show one (cert= in Python, --cert of curl)")
        if not tokens.tokens:
            return ANYBODY
        headers = Headers(scope=scope)
        given = _given(headers.get("authorization", ""))
        token = tokens.find(given) if given else None
        if token is None and not given and scope["method"] in ("GET", "HEAD") and "cookie" in headers:
            token = cookies.found(headers["cookie"], headers.get("host", ""), tokens, time.time())
            scope["state"]["has_cookie"] = token is not None
        if token is not None:
            return token
        if self._is_open(scope):
            return NOBODY
        if not given:
            raise Unauthorized("this service wants a token; send the header 'Authorization: Bearer <token>'")
        raise Unauthorized("the bearer token is wrong")

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._open_routes)


def _kept_by_none_but_browsers(send: Send) -> Send:
    """The same channel, whose replies no shared cache keeps: it would do so by itself only with what came for a token's header."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            caching = headers.get("cache-control", "")
            if "public" not in caching:  # which says that it is open to all
                if "private" not in caching:
                    headers["Cache-Control"] = f"private, {caching}" if caching else "private"
                headers.add_vary_header("Cookie")
        await send(message)

    return send_marked


def _given(authorization: str) -> bytes:
    """The token of the header Authorization: that of Bearer, or the password of Basic, whoever the user is; empty where none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")  # the bytes as they came
    if scheme.lower() == "basic":
        try:
            return b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
