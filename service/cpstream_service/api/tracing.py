"""Traces of the requests, by FastAPI's own OpenTelemetry support, where the standard variables name a receiver.

The SDK and its exporter are imported then only.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger("cpstream.service")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NOT_TRACED = frozenset({"/livez", "/readyz", "/metrics"})
_FLUSH_S = 2.0
"""So long the end of the process waits for the receiver of traces."""


@dataclass(frozen=True)
class Tracing:
    """config: for FastAPI(telemetry=...); span: the current one, whose like OpenTelemetry has; end: sends the last spans."""

    config: Any
    span: Callable[[], Any]
    end: Callable[[], None]


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables name a receiver, or the exporter `otlp`, and nothing switches traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in _ENDPOINTS))


def tracing(environment: Mapping[str, str]) -> Tracing | None:
    """How an app traces its requests, if that is wanted.

    A service that cannot trace serves all the same, and says so: somebody may set these variables for all programs of a cluster.
    """
    if not is_wanted(environment):
        return None
    try:
        from fastapi.telemetry import TelemetryConfig
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(environment)
    except ImportError as error:
        logger.warning("no traces: missing %s; run: pip install 'cpstream[otel]', or set OTEL_SDK_DISABLED=true", error.name)
        return None
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {"service.version": version("cpstream")} | ({} if named else {"service.name": "cpstream"})
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    config = TelemetryConfig(
        tracer_provider=provider,
        metrics=False,  # /metrics has them
        logs=False,
        operation_spans=False,  # one a request is enough
        auto_configure=False,
        exclude=lambda scope: scope["path"] in _NOT_TRACED,
    )

    def end() -> None:
        last = threading.Thread(target=provider.shutdown, name="cpstream-traces", daemon=True)  # an exporter tries again and again
        last.start()
        last.join(_FLUSH_S)

    logger.info("requests are traced, as the OTEL_* variables say")
    return Tracing(config, trace.get_current_span, end)


def _exporter(environment: Mapping[str, str]) -> "SpanExporter":
    """Where spans go; the exporter reads the rest of the variables itself."""
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
