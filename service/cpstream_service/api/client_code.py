"""The code that reads this very service: by the address of whoever asks, as far as that is seen, and with the client that fits."""

import re

from starlette.requests import Request

from cpstream_client.contract.bodies import ClientInfo, SplitInfo
from cpstream_client.contract.wire import CLIENT_PATH, CONTRACT

from ..page.views.client import Code
from .client_wheel import find_wheel
from .state import Service

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_DEFAULT = "localhost:8000"


def address_of(request: Request) -> str:
    """`http://data:8000`, without a path, that a proxy may have taken off. A Host that is none is not repeated in code to copy."""
    host = request.scope["state"].get("forwarded_host") or request.headers.get("host", "")
    return f"{request.url.scheme}://{host if _HOST.fullmatch(host) else _DEFAULT}"


def code_of(request: Request, service: Service, split: SplitInfo) -> Code:
    """Reads the wheel when first called: not for the event loop."""
    client = client_info()
    return Code(
        address_of(request), split.split, split.embedding_dim, client.wheel, client.sha256, has_tokens=service.settings.has_token
    )


def client_info() -> ClientInfo:
    """What is told of the client that fits."""
    wheel = find_wheel()
    return ClientInfo(
        contract=CONTRACT,
        version=wheel.version if wheel else None,
        wheel=f"{CLIENT_PATH}/{wheel.name}".lstrip("/") if wheel else None,
        sha256=wheel.sha256 if wheel else None,
    )
