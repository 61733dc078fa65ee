"""Which trace a request belongs to, where the program that asks has one going: W3C's Trace Context, by OpenTelemetry.

Nothing here brings OpenTelemetry: a program that traces has imported it.
"""

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

TRACEPARENT = "traceparent"


def trace_headers() -> dict[str, str]:
    """The headers by which the service goes on with the trace that is active here; none where there is none."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return {}
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)  # by the propagators that are set; W3C's, if none are
    return headers


def thread(target: Callable[..., None], *arguments: object, name: str) -> threading.Thread:
    """A daemon, not started yet, within the trace, and all else of the context, of who makes it.

    A daemon, so that an interpreter that exits in the middle of a batch does not wait for the network.
    """
    return threading.Thread(target=contextvars.copy_context().run, args=(target, *arguments), name=name, daemon=True)
