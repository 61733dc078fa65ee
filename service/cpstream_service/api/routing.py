"""How a request finds its route: HEAD wherever GET is, names that may hold a slash, parameters that are given once."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from .parameters import check_repeats
from .rights import check, needs_of


class Route(APIRoute):
    """A FastAPI route that answers HEAD as GET, and refuses repeated parameters, of which FastAPI would take the last.

    needs: the scope that a request's token must have (rights.py), or None.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        self.needs = needs_of(endpoint, self.methods or ())

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL and self._is_head(scope) else match), child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        check(scope, self.needs)
        await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that may be answered."""
        await (self.app if self._is_head(scope) else super().handle)(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            check_repeats(request.query_params)
            return await handle(request)

        return checked

    def _is_head(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in (self.methods or ())


def routed_path(scope: Scope) -> str:
    """The path for the router: decoded, but for the `/` and `%` within a segment, which NameConvertor decodes.

    A split named `a/b` is asked for as `a%2Fb`; a server decodes that before anybody can see where the name ends.
    """
    raw_path: bytes | None = scope.get("raw_path")
    if raw_path is None or b"%" not in raw_path:
        path: str = scope["path"]
        return path
    segments = (unquote(segment).replace("%", "%25").replace("/", "%2F") for segment in raw_path.decode("ascii").split("/"))
    return "/".join(segments)


class NameConvertor(Convertor[str]):
    """`{split:name}`: one segment of a path, in which `%2F` is a slash of the name."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return value.replace("%", "%25").replace("/", "%2F")


register_url_convertor("name", NameConvertor())
