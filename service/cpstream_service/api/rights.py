"""What a request may do: the scope that its route needs, against those of its token; and whose page it was that sent it.

A route says what it needs by `@needs("admin")` at its endpoint. What does not say so needs `read` for GET and HEAD, and `write`
for everything else. Access, before the routes, finds out who asks, and leaves it in the request's state:

    rights      the Token that counts: the header's, or the cookie's for GET and HEAD, which then has no scope but read and metrics;
                ANYBODY where none is set; NOBODY, at open routes alone
    token       its name, for logs and metrics, or None
    has_cookie  whether a cookie showed it
"""

from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from ..errors import Forbidden, Unauthorized, shown
from ..tokens import SCOPES, Token, TokenScope

E = TypeVar("E", bound=Callable[..., object])
CHANGING: frozenset[TokenScope] = frozenset({"write", "admin"})
"""What a page in somebody's browser must not do in their name."""
ANYBODY = Token("", frozenset({"read", "metrics"}))
"""Its own machine may do all else, too."""
NOBODY = Token("", frozenset())
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def needs(scope: TokenScope | None) -> Callable[[E], E]:
    """Decorator of an endpoint: the scope that a request for it needs; None: not even a token."""

    def declared(endpoint: E) -> E:
        endpoint.needs = scope  # type: ignore[attr-defined]
        return endpoint

    return declared


def needs_of(endpoint: Callable[..., object], methods: Collection[str]) -> TokenScope | None:
    """What a route's endpoint has said, or what follows from its methods."""
    needed: TokenScope | None = getattr(endpoint, "needs", "read" if set(methods) <= {"GET", "HEAD"} else "write")
    return needed


def check(scope: Scope, needed: TokenScope | None) -> None:
    """Raises Unauthorized, Forbidden."""
    if needed is None:
        return
    token: Token = scope["state"]["rights"]
    if needed not in token.scopes:
        if token is NOBODY:
            raise Unauthorized("this service wants a token; send the header 'Authorization: Bearer <token>'")
        if token is ANYBODY:
            if _is_from_this_machine(scope):
                check_origin(scope, is_open=True)
                return
            raise Forbidden(
                f"no token is set, so that only its own machine may do this ({needed}); ask from there without a proxy, or have "
                "the service started with tokens (--tokens-file, CPSTREAM_TOKEN)"
            )
        has = ", ".join(name for name in SCOPES if name in token.scopes)
        raise Forbidden(f"token {token.name} has the scopes {has}, and this needs {needed}; ask for one with it")
    if needed in CHANGING:
        check_origin(scope, is_open=False)


def _is_from_this_machine(scope: Scope) -> bool:
    """Whether a program of this machine asks, as far as can be seen: no proxy on it says that it asks for another."""
    try:
        is_loopback = ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False
    return is_loopback and not any(name in Headers(scope=scope) for name in _FORWARDED)


def check_origin(scope: Scope, is_open: bool) -> None:
    """Have no web page elsewhere change anything through a browser that reaches the service. Raises Forbidden."""
    headers = Headers(scope=scope)
    host = scope["state"].get("forwarded_host") or headers.get("host", "")
    if is_open and not _is_loopback_name(host):  # by a name that an attacker's DNS points to this machine
        raise Forbidden(f"Host is {shown(host)}, and without tokens this is taken for localhost alone; ask http://localhost:PORT")
    origin = headers.get("origin")
    if origin is not None and not _is_same(origin, host):
        raise Forbidden(
            f"Origin is {shown(origin)}, a page of another site than {shown(host)}; send it without a browser, or from /"
        )


def _is_same(origin: str, host: str) -> bool:
    """Whether an Origin is of this host and port. Its scheme does not count: a proxy may have taken the TLS off."""
    parts = urlsplit(origin)
    standard = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return bool(parts.netloc) and parts.netloc.lower().removesuffix(standard) == host.lower().removesuffix(standard)


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
