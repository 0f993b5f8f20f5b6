"""The SDK, set up by the standard ``OTEL_*`` variables: for commands alone, an application sets up its own."""

import os
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from uno.event_bus.dead_letter.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["tracing_from_env"]

FLUSH_S: Final = 3.0
"""How long the end waits for the last spans to go out. A collector that is away must not hold up a worker's stop."""

SERVICE_NAME: Final = "uno-dead-letter"
"""``service.name`` where no variable gives one."""

_OTLP: Final = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
"""Protocol → module of the exporter."""

_INSTALL: Final = {
    "http/protobuf": "uno-dead-letter[otlp]",
    "grpc": "opentelemetry-exporter-otlp-proto-grpc",
}


def tracing_from_env(environ: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Set up a global tracer provider if the variables ask for one; return what ends it, within 3 s.

    They do when ``OTEL_TRACES_EXPORTER`` names an exporter (``otlp``, ``console``), or when it is not set and an
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` is. A provider that the application has set stays, and nothing is done here. The
    SDK itself reads the rest: sampler, resource, limits, batches, headers and so on.

    Raises `ConfigError` for a value that is not known, and for an exporter that is not installed.
    """
    environ = os.environ if environ is None else environ
    names = _exporters(environ)
    if not names or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return _nothing
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _nothing
    exporters = [_console() if name == "console" else _otlp(environ) for name in names]

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": SERVICE_NAME})
    # Its own end, at the interpreter's, would wait for a collector that is away.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def end() -> None:
        ending = threading.Thread(target=provider.shutdown, name="uno last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)

    return end


def _nothing() -> None:
    pass


def _exporters(environ: Mapping[str, str]) -> list[str]:
    text = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not text:
        asked = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        return ["otlp"] if any(environ.get(name, "").strip() for name in asked) else []
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("otlp", "console", "none"):
            raise ConfigError(f"OTEL_TRACES_EXPORTER is {name[:100]!r}: allowed are otlp, console and none")
    return [name for name in dict.fromkeys(names) if name != "none"]


def _console() -> "SpanExporter":
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter()


def _otlp(environ: Mapping[str, str]) -> "SpanExporter":
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(variable, "").strip()
        if protocol:
            break
    else:
        variable, protocol = "", "http/protobuf"
    if protocol not in _OTLP:
        raise ConfigError(f"{variable} is {protocol[:100]!r}: allowed are {' and '.join(_OTLP)}")
    try:
        module: Any = import_module(_OTLP[protocol])
    except ImportError:
        raise ConfigError(
            f"OTEL_* variables ask for traces by OTLP ({protocol}), and its exporter is not installed: "
            f"pip install '{_INSTALL[protocol]}', or set OTEL_TRACES_EXPORTER=none"
        ) from None
    exporter: SpanExporter = module.OTLPSpanExporter()
    return exporter
