"""The cookie of a browser that has shown a token once: it opens what the token may read, on any replica, until it expires.

    cpstream_8000=trainers.1767225600.<salt and hidden token, base64url>

Of a token the service may know the hash alone, which must let nobody in: whoever reads it could make a signature under it. So
the cookie holds the token, hidden by HMACs under its hash of all else that the cookie says. Whoever changes that, or has no such
token, gets bytes whose hash is another; whoever finds a cookie does not get the token. A token that is changed or taken out takes
its cookies with it.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from operator import xor
from secrets import token_bytes
from urllib.parse import urlsplit

from ..tokens import Token, Tokens, TokenScope

LIFE_S = 7 * 24 * 3600
MAX_TOKEN_BYTES = 2048
"""Browsers drop cookies of more than 4,096 bytes."""
READING: frozenset[TokenScope] = frozenset({"read", "metrics"})
"""Of the token's scopes, what a cookie may have."""
_SALT_BYTES = 16
_MOST = 8
"""Cookies of one request that are tried."""


def cookie_name(host: str) -> str:
    """Services on several ports of one machine share its cookies; each needs a name of its own."""
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        port = None
    return "cpstream" if port is None else f"cpstream_{port}"


def sealed(token: Token, value: bytes, expires_s: int) -> str:
    """A cookie's value. value: of the token, at most MAX_TOKEN_BYTES."""
    salt = token_bytes(_SALT_BYTES)
    hidden = _hide(value, sha256(value).digest(), salt, token.name, expires_s)
    return _written(token.name, expires_s, salt + hidden)


def opened(value: str, tokens: Tokens, now_s: float) -> Token | None:
    """The token of a cookie's value, with the scopes of a cookie; None where it is of none that is valid, or has expired."""
    try:
        name, expires, content = value.rsplit(".", 2)
        expires_s, raw = int(expires), urlsafe_b64decode(content + "=" * (-len(content) % 4))
    except ValueError:
        return None
    if expires_s <= now_s or _written(name, expires_s, raw) != value:  # as nobody here writes it
        return None
    salt, hidden = raw[:_SALT_BYTES], raw[_SALT_BYTES:]
    for token in tokens.tokens:
        if token.name == name and "read" in token.scopes:
            for digest in token.digests:
                shown = _hide(hidden, digest, salt, name, expires_s)
                if hmac.compare_digest(sha256(shown).digest(), digest):
                    return replace(token, scopes=token.scopes & READING)
    return None


def found(header: str, host: str, tokens: Tokens, now_s: float) -> Token | None:
    """The token of the first valid one of a Cookie header."""
    values = list(_values(header, cookie_name(host)))[:_MOST]  # one for each path that a proxy serves a service under
    return next((token for value in values if (token := opened(value, tokens, now_s))), None)


def _values(header: str, wanted: str) -> Iterator[str]:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == wanted:
            yield value


def _written(name: str, expires_s: int, raw: bytes) -> str:
    return f"{name}.{expires_s}.{urlsafe_b64encode(raw).decode().rstrip('=')}"


def _hide(text: bytes, digest: bytes, salt: bytes, name: str, expires_s: int) -> bytes:
    """The text under a pad that none but who knows the digest can make; the same again shows it."""
    said = f"cpstream cookie {name} {expires_s} ".encode() + salt
    blocks = range(-(-len(text) // 32))
    pad = b"".join(hmac.digest(digest, said + block.to_bytes(2), "sha256") for block in blocks)
    return bytes(map(xor, text, pad))
