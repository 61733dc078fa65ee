"""What a trusted proxy says of the request that it passes on: who asks, by which scheme, and at which host."""

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class ProxyHeaders(ProxyHeadersMiddleware):
    """uvicorn's middleware, which leaves X-Forwarded-Host in the request's state, too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        if scope["type"] == "http" and (scope.get("client") or ("",))[0] in self.trusted_hosts:
            given = Headers(scope=scope).get("x-forwarded-host", "")
            scope.setdefault("state", {})["forwarded_host"] = given.rpartition(",")[
                2
            ].strip()  # the last is the trusted proxy's own
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]
