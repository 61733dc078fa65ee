"""HTTP's own questions: what is asked for, in which representation (Accept), and whether the client has it already (ETag)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from ..errors import NotAcceptable, shown


def target_of(scope: Scope) -> str:
    """What was asked for, query included: a client sees by it that the reply answers its request as it was sent."""
    path: str = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
    query: str = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


def preferred(request: Request, offers: tuple[str, ...]) -> str:
    """The offer that the Accept header prefers; at equal weight the first. Raises NotAcceptable when it excludes them all."""
    return _preferred(", ".join(request.headers.getlist("accept")), offers)


@lru_cache(maxsize=256)  # a trainer sends the same one with each request
def _preferred(accept: str, offers: tuple[str, ...]) -> str:
    weights = {offer: _weight(accept, offer) for offer in offers} if accept.strip() else dict.fromkeys(offers, 1.0)
    best = max(offers, key=lambda offer: weights[offer])
    if weights[best] <= 0:
        raise NotAcceptable(f"Accept is {shown(accept)}, which excludes every representation of this resource: {', '.join(offers)}")
    return best


def _weight(accept: str, offer: str) -> float:
    """The q of the most specific range of the header that covers the media type; 0 where none does."""
    ranks = {"*/*": 0, offer.partition("/")[0] + "/*": 1, offer: 2}
    best, weight = -1, 0.0
    for entry in accept.split(","):
        media_range, *parameters = (part.strip() for part in entry.lower().split(";"))
        rank = ranks.get(media_range, -1)
        if rank > best:
            best, weight = rank, _q(parameters)
    return weight


def _q(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def etag_of(fingerprint: str, representation: str, query: Mapping[str, object]) -> str:
    """A strong, quoted ETag. It is a pure function of the content and the query, hence the same on every replica."""
    material = json.dumps([fingerprint, representation, query], sort_keys=True)
    return f'"{hashlib.blake2b(material.encode(), digest_size=16).hexdigest()}"'


def not_modified(request: Request, etag: str) -> Response | None:
    """304 when the client names this ETag in If-None-Match, else None. The comparison is the weak one, as RFC 9110 says."""
    given = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in given or "*" in given:
        return Response(status_code=304, headers={"ETag": etag, **caching(request)})
    return None


def caching(request: Request) -> dict[str, str]:
    """Cache-Control of a reply that depends on the data: for ever where the URL pins the fingerprint, else ask each time.

    no-transform, because compressing floats costs a hundred times what sending them does.
    """
    kept = "max-age=31536000, immutable" if request.query_params.get("fingerprint") else "no-cache"
    return {"Cache-Control": f"{kept}, no-transform", "Vary": "Accept"}
