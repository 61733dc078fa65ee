"""A browser shows its token once, and gets a cookie (cookies.py) for it; and gives that up.

Both are at the root, so that the cookie's path, which nothing is said of, is all that this service has behind whatever proxy: a
browser takes it from the address that it asked.
"""

import time
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from cpstream_client.contract.token import clean_token
from cpstream_client.contract.wire import ErrorCode

from ...errors import Forbidden, InvalidParameter
from ...tokens import SCOPES, Tokens
from .. import cookies
from ..login import location_of, login_form
from ..rights import check_origin, needs
from ..routing import Route
from ..state import CurrentService
from .common import NoParameters

router = APIRouter(route_class=Route, include_in_schema=False)

FORM = "application/x-www-form-urlencoded"
MAX_BODY_BYTES = 16 * 1024


@router.get("/login")
@needs(None)
async def form(request: Request, _: NoParameters) -> Response:
    return login_form(request.scope, "", code=None) if _tokens(request).tokens else _see(".")


@router.post("/login")
@needs(None)
async def login(request: Request, service: CurrentService, _: NoParameters) -> Response:
    """A cookie for the token of a form, and on to what was asked for; or the form again."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise InvalidParameter(f"the body must be {FORM}, with the field token; programs send the token as a header instead")
    refusal = f"the form is larger than {MAX_BODY_BYTES} bytes; it must hold a token, and where to go"
    body = await service.arrivals.read(request, MAX_BODY_BYTES, refusal)
    try:
        fields = parse_qs(body.decode(), max_num_fields=8)
    except ValueError:
        raise InvalidParameter(
            "the form is no UTF-8 text, or has more than 8 fields; it must hold a token, and where to go"
        ) from None
    target = fields.get("to", [""])[0]
    if not _tokens(request).tokens:
        return _see(location_of(target))
    try:
        _check_sender(request.scope)
    except Forbidden as error:
        return login_form(request.scope, target, error.detail, ErrorCode.FORBIDDEN)
    try:
        value = clean_token(fields.get("token", [""])[0]).encode()
    except ValueError as error:
        return login_form(request.scope, target, f"The token {error}.")
    token = _tokens(request).find(value)
    if token is None:
        return login_form(request.scope, target, "This token is wrong, or no longer valid.")
    if "read" not in token.scopes:
        has = ", ".join(name for name in SCOPES if name in token.scopes)
        return login_form(
            request.scope, target, f"Token {token.name} has the scopes {has}, and this needs read.", ErrorCode.FORBIDDEN
        )
    if len(value) > cookies.MAX_TOKEN_BYTES:
        return login_form(request.scope, target, f"No cookie can hold a token of {len(value)} bytes.", ErrorCode.FORBIDDEN)
    reply = _see(location_of(target))
    expires_s = int(time.time()) + cookies.LIFE_S
    _set_cookie(reply, request, cookies.sealed(token, value, expires_s), cookies.LIFE_S)
    return reply


@router.post("/logout")
@needs(None)
async def logout(request: Request, _: NoParameters) -> Response:
    """The browser forgets the cookie. It would be valid still: to end all of a token's, change the token."""
    _check_sender(request.scope)
    reply = _see(".")
    _set_cookie(reply, request, "", 0)
    return reply


def _tokens(request: Request) -> Tokens:
    tokens: Tokens = request.app.state.credentials.tokens
    return tokens


def _check_sender(scope: Scope) -> None:
    """Have no page of another site log anybody in, or out. Raises Forbidden.

    What the browser says of whose page sent it counts first, for it holds behind a proxy that changes Host, too.
    """
    site = Headers(scope=scope).get("sec-fetch-site")
    if site is None:
        check_origin(scope, is_open=False)
    elif site not in ("same-origin", "none"):
        raise Forbidden("a page of another site sent this form; open this service's own page, and log in there")


def _see(location: str) -> Response:
    return RedirectResponse(location, 303, headers={"Cache-Control": "no-store"})


def _set_cookie(reply: Response, request: Request, value: str, max_age_s: int) -> None:
    """Lax: a link on another page may lead here, logged in; nothing but GET is taken by cookie, which changes nothing."""
    # by the Origin a browser says that it speaks TLS, be it to a proxy that takes it off
    is_tls = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
    name = cookies.cookie_name(request.headers.get("host", ""))
    reply.set_cookie(name, value, max_age=max_age_s, path=None, secure=is_tls, httponly=True, samesite="lax")
