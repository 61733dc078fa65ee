"""Makes JSON replies verifiable: a digest of the body, and which request it answers. Arrow streams carry checksums of their own."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.wire import DIGEST_HEADER, JSON, LOCATION_HEADER, PROBLEM_JSON, content_digest

from .problems import target_of


class Digests:
    """ASGI middleware: Content-Digest on JSON and problems that are sent in one piece, Content-Location where they succeed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None

        async def watch(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                media_type = MutableHeaders(scope=message).get("content-type", "").partition(";")[0]
                if media_type in (JSON, PROBLEM_JSON):
                    start = message  # until the body is known
                    return
            elif start is not None:
                if not message.get("more_body", False):
                    headers = MutableHeaders(scope=start)
                    headers[DIGEST_HEADER] = content_digest(message.get("body", b""))
                    if start["status"] == 200:
                        headers[LOCATION_HEADER] = target_of(scope)
                await send(start)
                start = None
            await send(message)

        await self.app(scope, receive, watch if scope["type"] == "http" else send)
