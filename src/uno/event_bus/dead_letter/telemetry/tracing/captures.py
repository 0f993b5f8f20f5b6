"""The spans of one call of `add` or `add_many`.

`add` is one PRODUCER span ``send <queue>``, whose context becomes the letter's creation context. `add_many` is a
PRODUCER span ``create <queue>`` for each letter, for the same purpose, and one CLIENT span ``send <queue>`` with links
to them; without ``create_spans`` its one span is of kind PRODUCER, and the creation context of all of them. A letter
whose headers the caller gave a creation context keeps that: the one span is of kind CLIENT then, and links to it.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer

from uno.event_bus.dead_letter.errors import PartialCapture
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.telemetry import semconv
from uno.event_bus.dead_letter.telemetry.tracing.carriers import conversation_of, creation_in
from uno.event_bus.dead_letter.telemetry.tracing.tracers import fail, harmless

__all__ = ["CaptureSpans", "carried"]


def carried(given: Mapping[str, Any]) -> bool:
    """Whether the caller's own headers have a trace context: the capture adds none then."""
    return any(name in given for name in _fields() or ())


@harmless
def _fields() -> set[str]:
    return propagate.get_global_textmap().fields - {"baggage"}


class CaptureSpans:
    """A context manager around one call; what its body raises is the spans' error."""

    def __init__(
        self, tracer: Tracer, queue: str, given: Mapping[str, Any], *, letters: int | None, create_spans: bool
    ) -> None:
        """`given` are the caller's headers; `letters` is how many `add_many` was given, None for `add`."""
        self._tracer = tracer
        self._queue = queue
        self._letters = letters
        self._parent = contexts.get_current()
        self._is_carried = bool(given) and carried(given)
        self._given = creation_in(given) if self._is_carried else None
        self.creates = letters is not None and create_spans and not self._is_carried
        """Whether each letter gets a creation context of its own."""
        self._common: dict[str, str | int] = {semconv.SYSTEM: semconv.REDIS, semconv.DESTINATION: queue}
        if conversation := conversation_of(given):
            self._common[semconv.CONVERSATION] = conversation
        self._created: dict[int, Span] = {}
        """Position → its span."""
        self._sent: Span | None = None
        self._facts: dict[str, str] = {}
        """What is known of it only after its start; set at once, at its end."""

    @harmless
    def _start(self) -> None:
        if not self.creates:
            self._send(SpanKind.CLIENT if self._is_carried else SpanKind.PRODUCER, [self._given])

    def _send(self, kind: SpanKind, linked: list[Any]) -> None:
        attributes = self._common | {semconv.OPERATION_NAME: "send", semconv.OPERATION_TYPE: "send"}
        if self._letters is not None:
            attributes[semconv.BATCH_COUNT] = self._letters
        links = [Link(span) for span in linked if span is not None]
        self._sent = self._tracer.start_span(f"send {self._queue}", self._parent, kind, attributes, links)

    def __enter__(self) -> Self:
        self._start()
        return self

    @property
    def context(self) -> Context:
        """The creation context of every letter of the call, unless each has its own."""
        return self._parent if self._sent is None else trace.set_span_in_context(self._sent, self._parent)

    def create(self, position: int) -> Context:
        """Return the creation context of one letter."""
        self._create(position)
        span = self._created.get(position)
        return self._parent if span is None else trace.set_span_in_context(span, self._parent)

    @harmless
    def _create(self, position: int) -> None:
        attributes = self._common | {semconv.OPERATION_NAME: "create", semconv.OPERATION_TYPE: "create"}
        self._created[position] = self._tracer.start_span(
            f"create {self._queue}", self._parent, SpanKind.PRODUCER, attributes
        )

    @harmless
    def sending(self, letter: NewLetter | Exception) -> None:
        """Note that the letters are made, and go out now; the first of them tells why."""
        if self.creates:
            self._send(SpanKind.CLIENT, [span.get_span_context() for span in self._created.values()])
        if isinstance(letter, NewLetter):
            self._facts = {semconv.REASON: letter.reason, semconv.FINGERPRINT: letter.fingerprint}

    @harmless
    def sent(self, ids: Mapping[int, str]) -> None:
        """Note what the letters were captured as, by position."""
        if self._letters is None:
            self._facts[semconv.MESSAGE] = ids[0]
        for position, span in self._created.items():
            if position in ids:
                span.set_attribute(semconv.MESSAGE, ids[position])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)

    @harmless
    def _end(self, error: BaseException | None) -> None:
        errors: Mapping[int, BaseException] = {}
        if isinstance(error, PartialCapture):
            self.sent(error.ids)
            errors = error.errors
        elif error is not None:
            errors = dict.fromkeys(self._created, error)
        for position, span in self._created.items():
            if position in errors:
                fail(span, errors[position])
            span.end()
        if self._sent is not None:
            if self._facts:
                self._sent.set_attributes(self._facts)
            if error is not None:
                fail(self._sent, error)
            self._sent.end()
