"""Request ids, the access log and what is counted: one ASGI middleware that looks at each message and copies no body."""

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cpstream_client.contract.wire import ARROW_STREAM, CONTRACT_HEADER, REQUEST_ID_HEADER, contract_header

from ..batches.account import Account
from .client_wheel import find_wheel
from .metrics import Metrics
from .negotiation import target_of

access_logger = logging.getLogger("cpstream.access")

MAX_LOGGED_CHARS = 1000
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WATCHED = frozenset({"/livez", "/readyz", "/metrics", "/page/live.json"})
"""Asked for every few seconds, for ever: in the log only at level debug, or when they fail."""
_COUNT_EVERY_S = 1.0
"""A reply may take minutes, and who looks on meanwhile should not see nothing and then all of it at once."""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observability:
    """ASGI middleware: gives every request an id, and says in log and metrics what became of it.

    Others leave in the request's state: `split`, `samples` and `batches` (how many the whole reply holds), `account` (of an Arrow
    stream), `code` (of a problem), `token` (the name of the one that was given).
    span: the current one of a service that traces.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, span: Callable[[], Any] | None = None) -> None:
        self.app, self.metrics, self._span = app, metrics, span
        wheel = find_wheel()
        self._contract = contract_header(wheel.name if wheel else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        span = None if self._span is None else self._span()
        status, sent, announced, is_stream = 0, 0, None, False
        first_byte_s: float | None = None
        counted, next_count = Counted(), began + _COUNT_EVERY_S

        async def watch(message: Message) -> None:
            nonlocal status, sent, announced, is_stream, first_byte_s, next_count
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers[CONTRACT_HEADER] = self._contract
                announced = headers.get("content-length")
                is_stream = headers.get("content-type") == ARROW_STREAM
                if is_stream:
                    self.metrics.open_streams.inc()
                if span is not None:
                    _describe(span, scope)
            elif nbytes := len(message.get("body", b"")):
                now = time.perf_counter()
                if first_byte_s is None:
                    first_byte_s = now - began
                if now > next_count:
                    next_count = now + _COUNT_EVERY_S
                    self._count_sent(scope, sent, counted)
                sent += nbytes
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            if is_stream:
                self.metrics.open_streams.dec()
            complete = announced is None or scope["method"] == "HEAD" or sent >= int(announced)
            if not complete and span is not None:
                span.set_attribute("cpstream.cut_short", True)
            route = _route(scope)
            took_s = time.perf_counter() - began
            self._count_sent(scope, sent, counted)
            self._count(scope, route, status, took_s, first_byte_s, complete)
            level = logging.DEBUG if route in _WATCHED and status < 400 else logging.INFO
            if access_logger.isEnabledFor(level):
                self._log(level, scope, route, status, sent, took_s, complete, _trace_id(scope, span))

    def _count_sent(self, scope: Scope, sent: int, counted: "Counted") -> None:
        """Count what has been sent since the last time; sent: bytes of the body so far."""
        metrics, state = self.metrics, scope["state"]
        token, account = state.get("token") or "", state.get("account")
        metrics.sent_to(_route(scope), token, sent - counted.nbytes)
        counted.nbytes = sent
        if account is not None:
            samples, batches = account.sent(sent)
            metrics.sent(state["split"], token, samples - counted.samples, batches - counted.batches)
            counted.samples, counted.batches = samples, batches

    def _count(self, scope: Scope, route: str, status: int, took_s: float, first_byte_s: float | None, complete: bool) -> None:
        metrics, state = self.metrics, scope["state"]
        method = scope["method"] if scope["method"] in _METHODS else "other"
        token = state.get("token") or ""
        metrics.answered(method, route, status, took_s=took_s, first_byte_s=first_byte_s)
        if "code" in state:
            metrics.refused(state["code"], token)
        account: Account | None = state.get("account")
        if account is not None:
            metrics.streamed(account)
        elif "samples" in state and complete and status == 200 and method != "HEAD":
            metrics.sent(state["split"], token, state["samples"], state["batches"])

    def _log(
        self, level: int, scope: Scope, route: str, status: int, sent: int, took_s: float, complete: bool, trace_id: str | None
    ) -> None:
        state = scope["state"]
        access_logger.log(
            level,
            "%s %s -> %d, %d bytes in %.3f s%s [%s]",
            scope["method"],
            target_of(scope)[:MAX_LOGGED_CHARS],  # as it was sent: a decoded path may hold a line break, and so forge a line
            status,
            sent,
            took_s,
            "" if complete else " (cut short)",
            state["request_id"],
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "query": scope["query_string"].decode("latin-1")[:MAX_LOGGED_CHARS],
                "route": route,
                "split": state.get("split"),
                "status": status,
                "code": state.get("code"),
                "bytes": sent,
                "seconds": round(took_s, 6),
                "complete": complete,
                "request_id": state["request_id"],
                "trace_id": trace_id,
                "client": (scope.get("client") or ("",))[0],
                "token": state.get("token"),
            },
        )


@dataclass(slots=True)
class Counted:
    """How much of a reply the counters hold already."""

    nbytes: int = 0
    samples: int = 0
    batches: int = 0


def _route(scope: Scope) -> str:
    """Its template: what metrics and log call it."""
    route: str = getattr(scope.get("route"), "path_format", "unmatched")
    return route


def _describe(span: Any, scope: Scope) -> None:
    """Tell a span more than what every web service's says, and its route by the one name that metrics and log have for it."""
    state = scope["state"]
    if route := getattr(scope.get("route"), "path_format", None):
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    for name in ("request_id", "split", "samples", "code", "token"):
        if state.get(name) is not None:
            span.set_attribute(f"cpstream.{name}", state[name])


def _trace_id(scope: Scope, span: Any) -> str | None:
    """Of the trace that the service's span is part of, or else of the one that the client names by W3C's Trace Context."""
    if span is not None and span.get_span_context().is_valid:
        return format(span.get_span_context().trace_id, "032x")
    found = _TRACEPARENT.fullmatch(Headers(scope=scope).get("traceparent", ""))
    return found[1] if found else None
