"""Trace contexts as letters carry them: of their creation in the headers, of the last attempt in the history.

The headers are written and read by the application's own propagator (`opentelemetry.propagate`): W3C trace context and
baggage unless it has set another. The history is the engine's own affair, and always W3C.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, override

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from uno.event_bus.dead_letter.history import History
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.telemetry import semconv

__all__ = ["Creation", "conversation_of", "creation_in", "previous_attempt", "remember"]

LONGEST_STATE: Final = 256
"""Characters of a tracestate that the history keeps; a longer one is left out, the attempts need the room."""

_W3C: Final = TraceContextTextMapPropagator()

_ATTEMPT: Final = "attempt"
"""Beside the W3C headers in `History.trace`: the attempt's number, which `RetryLater` does not raise."""


class Creation(NamedTuple):
    """What headers say of the trace that a letter was captured in."""

    context: Context
    """In which it is processed: with the remote span and the baggage, as far as there are any."""
    span: SpanContext | None
    """None when the headers have no trace context, or a broken one."""


class _Texts(Getter[Mapping[str, Any]]):
    """Reads headers, which may hold anything that JSON can say; only texts are of interest."""

    @override
    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    @override
    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_TEXTS: Final = _Texts()

_CONVERSATIONS: Final = frozenset(semconv.CONVERSATION_HEADERS)

_TRACEPARENT: Final = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class _Global:
    """The application's propagator; it may set another at any time."""

    def __init__(self) -> None:
        self._known: object = None
        self._is_w3c = False

    @property
    def is_w3c(self) -> bool:
        """Whether it is OpenTelemetry's default: W3C trace context and baggage."""
        propagator = propagate.get_global_textmap()
        if propagator is not self._known:
            self._known, self._is_w3c = propagator, propagator.fields == {"traceparent", "tracestate", "baggage"}
        return self._is_w3c


_GLOBAL: Final = _Global()


def _plain(headers: Mapping[str, Any]) -> SpanContext | None:
    """Return the span of headers in which a traceparent stands alone, as W3C has it: a third of the usual time."""
    text = headers.get("traceparent")
    if not isinstance(text, str) or "tracestate" in headers or "baggage" in headers or not _GLOBAL.is_w3c:
        return None
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    span = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    return span if span.is_valid else None


def creation_in(headers: Mapping[str, Any], base: Context) -> Creation:
    """Return the creation context in the headers, on top of a context that is not to be a letter's parent."""
    if not headers:
        return Creation(base, None)
    plain = _plain(headers)
    if plain is not None:
        return Creation(trace.set_span_in_context(trace.NonRecordingSpan(plain), base), plain)
    context = propagate.extract(headers, base, getter=_TEXTS)
    span = trace.get_current_span(context)
    if span is trace.get_current_span(base):
        return Creation(context, None)
    found = span.get_span_context()
    return Creation(context, found if found.is_valid else None)


def conversation_of(headers: Mapping[str, Any]) -> str:
    """Return the correlation id in the headers; empty when there is none."""
    if _CONVERSATIONS.isdisjoint(headers):
        return ""
    for name in semconv.CONVERSATION_HEADERS:
        value = headers.get(name)
        if value is not None and value != "":
            return str(value)
    return ""


def previous_attempt(letter: Letter) -> Link | None:
    """Return the link to the letter's last attempt that failed and was traced."""
    carrier = letter.history.trace if letter.packed_history else None
    if not carrier:
        return None
    span = trace.get_current_span(_W3C.extract(carrier, Context())).get_span_context()
    if not span.is_valid:
        return None
    number = carrier.get(_ATTEMPT, "")
    attempt = int(number) if number.isascii() and number.isdigit() else letter.attempt - 1
    return Link(span, {semconv.LINK_TYPE: semconv.PREVIOUS_ATTEMPT, semconv.ATTEMPT: attempt})


def remember(history: History, span: SpanContext, attempt: int) -> None:
    """Keep an attempt's context in the letter's history, for the next one to link to."""
    history.trace = {
        "traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}",
        _ATTEMPT: str(attempt),
    }
    state = span.trace_state.to_header()
    if state and len(state) <= LONGEST_STATE:
        history.trace["tracestate"] = state
