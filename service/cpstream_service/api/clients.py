"""Who a client is, where limits and turns count by client."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.types import Scope

from ..tokens import THE_ONE

_MAX_CHARS = 64


def client_of(scope: Scope, token_name: str | None) -> str:
    """Its token's name; or the address that it asks from, through trusted proxies, of IPv6 the /64, which one machine has whole.

    The token that is set without a name says nothing of who asks: all may share it.
    """
    if token_name is not None and token_name != THE_ONE:
        return f"token {token_name}"
    return _named((scope.get("client") or ("",))[0])


@lru_cache(maxsize=1024)  # a trainer asks again and again
def _named(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:  # a name that a proxy gave, or a Unix socket
        return host[:_MAX_CHARS]
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
