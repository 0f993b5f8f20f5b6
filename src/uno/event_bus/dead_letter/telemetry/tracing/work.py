"""The spans of a worker or a replay: takes, attempts and settles."""

from collections.abc import Iterable, Mapping, Sequence
from contextvars import Token
from time import time_ns
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from uno.event_bus.dead_letter.history import History
from uno.event_bus.dead_letter.letter import Letter, Verb
from uno.event_bus.dead_letter.telemetry import semconv
from uno.event_bus.dead_letter.telemetry.tracing.carriers import (
    LetterTrace,
    conversation_of,
    previous_attempt,
    remember,
    trace_of,
)
from uno.event_bus.dead_letter.telemetry.tracing.tracers import fail, harmless

__all__ = ["AttemptSpan", "WorkSpans"]

GROUP: Final = "workers"
"""The consumer group of every shard."""

SETTLE_NAMES: Final[Mapping[Verb, str]] = {
    Verb.RESOLVE: "ack",
    Verb.RETRY: "retry",
    Verb.PARK: "dead_letter",
    Verb.RELEASE: "release",
    Verb.DISCARD: "discard",
}
"""Verb → the operation's name in the conventions."""

type Address = tuple[str, int]


class AttemptSpan:
    """The span of an attempt, current from when this is made until `end`; in the same task."""

    __slots__ = ("_is_concluded", "_span", "_token")

    def __init__(self, span: Span, context: Context) -> None:
        self._span = span
        self._is_concluded = False
        self._token: Token[Context] = contexts.attach(trace.set_span_in_context(span, context))

    def conclude(self) -> None:
        """Note that the attempt has come to an end of its own: well, unless `failed` says otherwise."""
        self._is_concluded = True

    @harmless
    def keep_in(self, history: History, attempt: int) -> None:
        """Keep the attempt's context in the letter's history: the next attempt links to it."""
        remember(history, self._span.get_span_context(), attempt)

    @harmless
    def failed(self, error_type: str, message: str, traceback: str, fingerprint: str, reason: str) -> None:
        """Mark the span as failed. The texts are bounded, as a letter keeps them; nothing of the event is in them."""
        span = self._span
        if not span.is_recording():
            return
        span.set_attributes(
            {
                semconv.ERROR_TYPE: error_type or "_OTHER",
                semconv.REASON: reason,
                semconv.FINGERPRINT: fingerprint,
            }
        )
        # Not `record_exception`, which formats the traceback once more, without any bound.
        span.add_event(
            semconv.EXCEPTION,
            {
                semconv.EXCEPTION_TYPE: error_type,
                semconv.EXCEPTION_MESSAGE: message,
                semconv.EXCEPTION_STACKTRACE: traceback,
            },
        )
        span.set_status(Status(StatusCode.ERROR, message))

    @harmless
    def end(self, lost: bool, /) -> None:
        """End the span; an attempt that was cut short, because its lease was `lost` or the worker stops, has failed."""
        contexts.detach(self._token)
        if not self._is_concluded:
            why = "lease_lost" if lost else "cancelled"
            self._span.set_attribute(semconv.ERROR_TYPE, why)
            self._span.set_status(Status(StatusCode.ERROR, why))
        self._span.end()


class WorkSpans:
    """Makes the spans of one session.

    `parent` is the context of takes and settles, and of attempts on letters without a creation context: an empty one
    for a worker, which outlives whatever span it was started in, and the caller's for what the caller waits for.
    """

    def __init__(self, tracer: Tracer, queue: str, consumer: str, parent: Context) -> None:
        self._tracer = tracer
        self._queue = queue
        self._parent = parent
        self._common: dict[str, str | int] = {
            semconv.SYSTEM: semconv.REDIS,
            semconv.DESTINATION: queue,
            semconv.GROUP: GROUP,
            semconv.CLIENT: consumer,
        }
        self._of_attempts: dict[int, dict[str, str | int]] = {}
        """Shard → what is the same for all its attempts."""
        self._of_takes = self._common | _operation("receive", "receive")
        self._process = f"process {queue}"

    # -- takes ---------------------------------------------------------------------------------------

    @harmless
    def received(
        self, letters: Sequence[Letter], began_ns: int, shard: int, address: Address
    ) -> list[LetterTrace] | None:
        """Make the span of a take that gave letters, which began at `began_ns`; return what their spans need."""
        found = [trace_of(letter, self._parent) for letter in letters]
        links = [of.creation for of in found if of.creation is not None]
        attributes = self._of_takes | _place(shard, address) | {semconv.BATCH_COUNT: len(letters)}
        self._tracer.start_span(
            f"receive {self._queue}", self._parent, SpanKind.CLIENT, attributes, links, began_ns
        ).end()
        return found

    # -- attempts ------------------------------------------------------------------------------------

    @harmless
    def attempt(self, letter: Letter, shard: int, of: LetterTrace | None, most: int | None) -> AttemptSpan | None:
        """Begin the span of an attempt, and make it current; `most` is how many the letter's policy allows."""
        if of is None:
            of = LetterTrace(None, None, conversation_of(letter.headers))
        attributes = self._of_attempt(shard)
        attributes[semconv.MESSAGE] = letter.id
        attributes[semconv.ATTEMPT] = letter.attempt
        if most is not None:
            attributes[semconv.MAX_ATTEMPTS] = letter.counters.failures_at_redrive + most
        if of.conversation:
            attributes[semconv.CONVERSATION] = of.conversation
        links = [] if of.creation is None else [of.creation]
        context = of.context(self._parent)
        previous = previous_attempt(letter)
        if previous is not None:
            links.append(previous)
            if of.creation is None:  # one trace all the same: each attempt hangs below the one before
                context = trace.set_span_in_context(trace.NonRecordingSpan(previous.context), context)
        span = self._tracer.start_span(self._process, context, SpanKind.CONSUMER, attributes, links)
        of.last = span.get_span_context()
        return AttemptSpan(span, context)

    def _of_attempt(self, shard: int) -> dict[str, str | int]:
        """Return a copy of what is the same for all attempts on the shard's letters."""
        same = self._of_attempts.get(shard)
        if same is None:
            same = self._common | _operation("process", "process") | {semconv.PARTITION: str(shard)}
            self._of_attempts[shard] = same
        return same.copy()

    # -- settles -------------------------------------------------------------------------------------

    @harmless
    def settled(
        self,
        outcomes: Iterable[tuple[Verb, LetterTrace | None]],
        began_ns: int,
        shard: int,
        address: Address,
        error: BaseException | None = None,
    ) -> None:
        """Make the spans of a settle that began at `began_ns`: one for each verb in it."""
        traces: dict[Verb, list[LetterTrace | None]] = {}
        for verb, of in outcomes:
            traces.setdefault(verb, []).append(of)
        ended_ns = time_ns()
        for verb, settled in traces.items():
            name = SETTLE_NAMES[verb]
            attributes = self._common | _operation(name, "settle") | _place(shard, address)
            attributes[semconv.BATCH_COUNT] = len(settled)
            links = [Link(of.last) for of in settled if of is not None and of.last is not None]
            span = self._tracer.start_span(
                f"{name} {self._queue}", self._parent, SpanKind.CLIENT, attributes, links, began_ns
            )
            if error is not None:
                fail(span, error)
            span.end(ended_ns)


def _operation(name: str, type: str) -> dict[str, str | int]:
    return {semconv.OPERATION_NAME: name, semconv.OPERATION_TYPE: type}


def _place(shard: int, address: Address) -> dict[str, str | int]:
    host, port = address
    where: dict[str, str | int] = {semconv.PARTITION: str(shard), semconv.SERVER_ADDRESS: host}
    return where | {semconv.SERVER_PORT: port} if port else where
