"""The description of the API, for programs and to click through. Swagger UI comes from its package: no other host is asked."""

from functools import lru_cache
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import HTMLResponse, Response

from ...errors import NotFound
from ..json_replies import CompactJson
from ..rights import needs
from ..routing import Route
from .common import NoParameters

router = APIRouter(route_class=Route)

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cpstream: the HTTP API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> says the same.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
_MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
    "start.js": "text/javascript",
}
# Swagger UI sets styles of elements, and its pictures are within its style sheet.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, _: NoParameters) -> Response:
    return CompactJson(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(_: NoParameters) -> Response:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/{name}", include_in_schema=False)
@needs(None)
async def docs_file(name: Annotated[str, Path()], _: NoParameters) -> Response:
    if name not in _MEDIA_TYPES:
        raise NotFound(f"/docs has no file {name[:80]!r}")
    return Response(_content(name), media_type=_MEDIA_TYPES[name], headers={"Cache-Control": "max-age=3600"})


@lru_cache(maxsize=len(_MEDIA_TYPES))
def _content(name: str) -> bytes:
    if name == "start.js":
        return _START.encode()
    return (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
