"""Requests like one that was answered before skip the router.

Random access asks thousands of times a second for the same resource with the same parameters, only the body differs. Routing and
validating such a request by FastAPI costs more than gathering and sending 256 samples; so the second one goes straight to what
answered the first. FastAPI stays the one place where paths and parameters are declared and checked.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import RequestError, problem_response

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
