"""Trace contexts as letters carry them: of their creation in the headers, of the last attempt in the history.

The headers are written and read by the application's own propagator (`opentelemetry.propagate`): W3C trace context and
baggage unless it has set another. The history is the engine's own affair, and always W3C.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, override

import msgspec
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from uno.event_bus.dead_letter.history import History
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.telemetry import semconv
from uno.event_bus.dead_letter.telemetry.tracing.tracers import harmless

__all__ = ["LetterTrace", "conversation_of", "creation_in", "previous_attempt", "remember", "trace_of"]

LONGEST_STATE: Final = 256
"""Characters of a tracestate that the history keeps; a longer one is left out, the attempts need the room."""

_W3C: Final = TraceContextTextMapPropagator()

_ATTEMPT: Final = "attempt"
"""Beside the W3C headers in `History.trace`: the attempt's number, which `RetryLater` does not raise."""


class LetterTrace:
    """What the spans of one held letter need to know of its capture, and of each other.

    There is one for each letter that is held, and it keeps little: what outlives a take costs more to keep, by the
    collector's visits, than to make.
    """

    __slots__ = ("_context", "conversation", "creation", "last")

    def __init__(self, creation: SpanContext | None, context: Context | None = None, conversation: str = "") -> None:
        self.creation = None if creation is None else Link(creation)
        """One link for the take and the attempt; None when the headers have no trace context, or a broken one."""
        self._context = context
        self.conversation = conversation
        """The correlation id; empty when there is none."""
        self.last = creation
        """What its settle links to: its attempt; before there is one, its creation."""

    def context(self, base: Context) -> Context:
        """Return the context in which the letter is processed, on top of one that is not to be its parent."""
        if self._context is not None:  # of a propagator that may have set more than a span
            return self._context
        if self.creation is None:
            return base
        return trace.set_span_in_context(trace.NonRecordingSpan(self.creation.context), base)


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

_FLAGS: Final = [TraceFlags(flags) for flags in range(256)]

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


class _Headers(msgspec.Struct, gc=False):
    """What spans are made of; no other header is read."""

    traceparent: str
    tracestate: Any = None
    baggage: Any = None
    correlation_id: Any = None
    conversation_id: Any = None
    correlation_id_: Any = msgspec.field(default=None, name="correlation-id")
    x_correlation_id: Any = msgspec.field(default=None, name="x-correlation-id")

    @property
    def is_plain(self) -> bool:
        """Whether the trace context is a traceparent alone."""
        return self.tracestate is None and self.baggage is None

    @property
    def has_conversation(self) -> bool:
        """Whether there may be a correlation id."""
        return not (
            self.correlation_id is None
            and self.conversation_id is None
            and self.correlation_id_ is None
            and self.x_correlation_id is None
        )


_HEADERS: Final = msgspec.json.Decoder(_Headers)


def _plain(letter: Letter) -> LetterTrace | None:
    """Return the trace of headers in which a traceparent stands alone, as W3C has it: a third of the usual time."""
    try:
        headers = _HEADERS.decode(letter.packed_headers)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # they are JSON that anybody may have written
        return None
    match = _TRACEPARENT.fullmatch(headers.traceparent)
    if match is None or not headers.is_plain or not _GLOBAL.is_w3c:
        return None
    trace_id, span_id, flags = match.groups()
    span = SpanContext(int(trace_id, 16), int(span_id, 16), True, _FLAGS[int(flags, 16)])
    conversation = conversation_of(letter.headers) if headers.has_conversation else ""
    return LetterTrace(span, None, conversation) if span.is_valid else None


def trace_of(letter: Letter, base: Context) -> LetterTrace:
    """Return what a letter's headers say, whose trace is on top of a context that is not to be its parent."""
    if not letter.packed_headers:
        return LetterTrace(None)
    plain = _plain(letter)
    if plain is not None:
        return plain
    headers = letter.headers
    context = propagate.extract(headers, base, getter=_TEXTS)
    span = trace.get_current_span(context)
    found = None if span is trace.get_current_span(base) else span.get_span_context()
    return LetterTrace(found if found is not None and found.is_valid else None, context, conversation_of(headers))


@harmless
def creation_in(headers: Mapping[str, Any]) -> SpanContext | None:
    """Return the trace context in the headers that a caller gives; None when there is none, or a broken one."""
    found = trace.get_current_span(propagate.extract(headers, Context(), getter=_TEXTS)).get_span_context()
    return found if found.is_valid else None


def conversation_of(headers: Mapping[str, Any]) -> str:
    """Return the correlation id in the headers; empty when there is none."""
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
