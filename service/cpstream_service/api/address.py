"""The address by which whoever asks reaches the service, as far as that can be seen from here."""

import re

from starlette.requests import Request

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_DEFAULT = "localhost:8000"


def address_of(request: Request) -> str:
    """`http://data:8000`, without a path, that a proxy may have taken off. A Host that is none is not repeated in code to copy."""
    host = request.scope["state"].get("forwarded_host") or request.headers.get("host", "")
    return f"{request.url.scheme}://{host if _HOST.fullmatch(host) else _DEFAULT}"
