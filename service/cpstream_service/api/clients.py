"""Who a client is, where limits and turns count by client."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.types import Scope

_MAX_CHARS = 64


def client_of(scope: Scope) -> str:
    """The address that the request came from, through trusted proxies; of IPv6 the /64, which one machine has whole."""
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
