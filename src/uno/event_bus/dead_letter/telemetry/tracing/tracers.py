"""Whether there is anybody to trace for, and if so, what makes the spans."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer, TracerProvider

from uno.event_bus.dead_letter.telemetry import semconv

__all__ = ["OFF", "Tracers", "error_type_of", "fail", "harmless"]

logger = logging.getLogger(__name__)

OFF: Final = nullcontext()
"""Stands for the spans of a call while tracing is off."""


@lru_cache(1)
def _version() -> str:
    try:
        return version("uno-dead-letter")
    except PackageNotFoundError:
        return ""


class Tracers:
    """The tracer of a provider, the global one unless another is given.

    The global one may be set, once, at any time: whoever asks is answered by what is there now.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self._known: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def current(self) -> Tracer | None:
        """Return the tracer; None when its spans would be nobody's. Costs 1 µs: ask once a call, not once a letter."""
        provider = self.provider or trace.get_tracer_provider()
        if provider is not self._known:
            self._tracer, self._known = _tracer_of(provider), provider
        return self._tracer


_told: set[str] = set()
"""What has failed, and was logged: each only once, because it may fail for every letter."""


def harmless[**P, T](method: Callable[P, T]) -> Callable[P, T | None]:
    """Have a method return None in place of what it raises."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception:
            name = method.__qualname__
            if name not in _told:
                _told.add(name)
                logger.exception("tracing: %s failed; letters go on without, and it is not logged again", name)
            return None

    return call


@harmless
def _tracer_of(provider: TracerProvider) -> Tracer | None:
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(semconv.SCOPE, _version(), semconv.SCHEMA_URL)
    return None if isinstance(tracer, trace.NoOpTracer) else tracer  # the SDK's answer to OTEL_SDK_DISABLED


def error_type_of(error: BaseException) -> str:
    """Return the error's class as letters name it: with its module, but for Python's own."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def fail(span: Span, error: BaseException) -> None:
    """Mark a span of ours, about the store or a refused event, as failed by this error."""
    kind = error_type_of(error)
    try:
        text = str(error)
    except Exception:  # whose class is not ours
        text = kind
    span.set_attribute(semconv.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, text))
