"""A reverse proxy in front of a real Chroma server, which does what hosted ones and gateways do.

cap        most records that it gives at once, whatever is asked for
refuse     most records that may be asked for: more is answered as Chroma Cloud answers it
prefix     path under which the server is
headers    that each request must have, or it is answered 401
answers    called with each request's path without /api/v2; a Response of it is the reply, None lets the request pass
on_get     called before the n-th reading of records, counted from 0
"""

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from conftest import serving
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

METHODS = ["GET", "POST", "PUT", "DELETE"]


@contextmanager
def chroma_proxy(
    port: int,
    *,
    cap: int | None = None,
    refuse: int | None = None,
    prefix: str = "",
    headers: Mapping[str, str] | None = None,
    answers: Callable[[str], Response | None] | None = None,
    on_get: Callable[[int], None] | None = None,
    **server: Any,
) -> Iterator[str]:
    """The proxy, by a uvicorn of these further settings. Yields its URL, with the prefix."""
    numbers = itertools.count()

    async def judged(request: Request, path: str, body: bytes) -> Response | bytes:
        if any(request.headers.get(name) != value for name, value in (headers or {}).items()):
            return JSONResponse({"error": "AuthError", "message": "no"}, 401)
        if answers is not None and (answer := answers(path.removeprefix("/api/v2"))) is not None:
            return answer
        if not path.endswith("/get"):
            return body
        if on_get is not None:
            await run_in_threadpool(on_get, next(numbers))
        asked = json.loads(body)
        limit = asked.get("limit") or 1 << 31
        if refuse is not None and limit > refuse:
            return JSONResponse({"error": "QuotaError", "message": f"Quota exceeded: {limit} exceeds limit of {refuse}"}, 400)
        return json.dumps(asked | {"limit": min(limit, cap or limit)}).encode()

    async def forward(request: Request) -> Response:
        path = request.url.path.removeprefix(prefix)
        judgement = await judged(request, path, await request.body())
        if isinstance(judgement, Response):
            return judgement
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as client:
            reply = await client.request(
                request.method, path, params=request.query_params, content=judgement, headers={"Content-Type": "application/json"}
            )
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("Content-Type"))

    route: Callable[[Request], Awaitable[Response]] = forward
    with serving(Starlette(routes=[Route(prefix + "/{path:path}", route, methods=METHODS)]), **server) as url:
        yield url + prefix
