"""Events that come in over HTTP become letters: what `capture.Capturer.letters` does for events of this process."""

import re
from collections.abc import Iterable, Mapping, Sequence
from secrets import token_hex
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request

from uno.event_bus.dead_letter.codec import is_json
from uno.event_bus.dead_letter.errors import DeadLetterError, InvalidEvent, PayloadTooLarge
from uno.event_bus.dead_letter.failure import describe_texts
from uno.event_bus.dead_letter.letter import DeadLetterReason, NewLetter
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.remote.wire import Event
from uno.event_bus.dead_letter.retry import policy_for

__all__ = ["letter_of", "letters_of", "trace_of"]

_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

LONGEST_STATE: Final = 512
"""Characters of a tracestate, which W3C has every vendor carry on."""


MOST_LEVELS: Final = 100
"""How deeply headers may be nested: those that a process can just read, it cannot read within a page."""


def trace_of(request: Request) -> dict[str, str]:
    """Return the trace context of a request, as headers of its events."""
    parent, state = request.headers.get("traceparent", ""), request.headers.get("tracestate", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    return {"traceparent": parent} | ({"tracestate": state} if 0 < len(state) <= LONGEST_STATE else {})


def letters_of(
    queue: DeadLetterQueue, events: list[Event], trace: Mapping[str, str]
) -> list[NewLetter | DeadLetterError]:
    """Return the letters of events, by position; an event that cannot become one has its error there."""
    made: list[NewLetter | DeadLetterError] = []
    for event in events:
        try:
            made.append(letter_of(queue, event, trace))
        except (InvalidEvent, PayloadTooLarge) as error:
            made.append(error)
    return made


def letter_of(queue: DeadLetterQueue, event: Event, trace: Mapping[str, str]) -> NewLetter:
    """Return the letter of an event; without a trace context of its own it gets the request's.

    Raises `InvalidEvent` for a payload that is missing, twice there, or not of its content type, and for headers that
    are nested too deeply; `PayloadTooLarge`.
    """
    config = queue.config
    payload = _payload(event)
    if len(payload) > config.max_payload_bytes:
        raise PayloadTooLarge(len(payload), config.max_payload_bytes)
    headers = _headers(event, trace, config.max_payload_bytes)
    reason = event.reason or _reason(event).value
    failure = describe_texts(
        event.error_type,
        event.error,
        event.traceback,
        event_type=event.type,
        reason=reason,
        fingerprint=event.fingerprint,
    )
    return NewLetter(
        event_id=event.event_id or token_hex(16),
        type=event.type,
        payload=payload,
        content_type=event.content_type,
        subscription=event.subscription,
        reason=reason,
        error_type=failure.error_type,
        error=failure.message,
        traceback=failure.traceback,
        fingerprint=failure.fingerprint,
        failed_at_ms=event.failed_at_ms,
        attempts=event.attempts,
        delay_ms=_delay_ms(queue, event),
        ordering_key=event.ordering_key,
        dedupe_key=event.dedupe_key,
        headers=headers,
        has_own_id=not event.event_id and config.spool_dir is None,
    )


def _payload(event: Event) -> bytes:
    if (event.payload is UNSET) == (event.payload_base64 is UNSET):
        raise InvalidEvent(event.type, "it needs payload or payload_base64, one of the two")
    if event.payload_base64 is not UNSET:
        return event.payload_base64
    if not is_json(event.content_type):
        why = f"payload is JSON, and content_type is {event.content_type[:100]!r}: use payload_base64"
        raise InvalidEvent(event.type, why, field="content_type")
    return bytes(event.payload)  # type: ignore[arg-type]  # UNSET is refused above


def _headers(event: Event, trace: Mapping[str, str], most_bytes: int) -> bytes:
    own = event.headers
    if trace and "traceparent" not in own:
        own = {**trace, **own}
    try:
        packed = msgspec.json.encode(own) if own else b""
    except RecursionError:
        raise _too_deep(event) from None
    if len(packed) > most_bytes:
        raise PayloadTooLarge(len(packed), most_bytes, "headers")
    if packed.count(b"{") + packed.count(b"[") > MOST_LEVELS and _levels(own) > MOST_LEVELS:
        raise _too_deep(event)
    return packed


def _too_deep(event: Event) -> InvalidEvent:
    return InvalidEvent(event.type, f"nested in more than {MOST_LEVELS} levels", field="headers")


def _levels(value: object) -> int:
    """Return how deeply a value of JSON is nested."""
    levels, within = 0, [value]
    while within:
        levels += 1
        within = [part for each in within for part in _parts(each)]
    return levels - 1


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _reason(event: Event) -> DeadLetterReason:
    """Return why an event became a letter, as far as the texts of its error tell: as `capture.reason_of`."""
    if event.error_type == "TimeoutError":
        return DeadLetterReason.TIMEOUT
    return DeadLetterReason.HANDLER_FAILED if event.error_type or event.error else DeadLetterReason.UNKNOWN


def _delay_ms(queue: DeadLetterQueue, event: Event) -> int:
    if event.delay_ms is not None:
        return event.delay_ms
    policy = policy_for(queue.policy_of(event.type, event.subscription), None)
    return int((policy.first_delay() or 0.0) * 1000)
