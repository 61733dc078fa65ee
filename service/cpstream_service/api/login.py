"""The form that a browser gets where the service wants a token, instead of what it asked for, or again where that is wrong."""

from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import Scope

from cpstream_client.contract.wire import ErrorCode

from ..page import policy
from .negotiation import target_of
from .pages import HTML, frame_of

_HEADERS = {**policy.HEADERS, "Cache-Control": "no-store", "Vary": "Accept"}


def login_form(
    scope: Scope, target: str | None = None, refusal: str = "", code: ErrorCode | None = ErrorCode.UNAUTHORIZED
) -> Response:
    """target: what to show after the login, below the service's address; None: what is asked for now. code: why it is shown."""
    from ..page.views import login as view  # here: what renders loads what the service need not have

    body = view.page(frame_of(scope, None), (target_of(scope) if target is None else target).lstrip("/"), refusal)
    if code is None:
        return Response(body, 200, _HEADERS, HTML)
    scope["state"]["code"] = code.code  # for the log and the metrics
    how = {"WWW-Authenticate": "Bearer"} if code is ErrorCode.UNAUTHORIZED else {}
    return Response(body, code.status, _HEADERS | how, HTML)


def location_of(target: str) -> str:
    """Where to go after the login, relative to /login: below the service's address, whatever a form says."""
    return "." if ".." in unquote(target.partition("?")[0]).replace("\\", "/").split("/") else "./" + target.lstrip("/\\")
