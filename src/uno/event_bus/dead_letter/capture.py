"""Capture: from an event and its failure to a letter in the store."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from operator import length_hint
from secrets import token_hex
from typing import Any, Final

import msgspec
from opentelemetry import propagate
from opentelemetry.context import Context

from uno.event_bus.dead_letter.codec import Encoded, encode
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import (
    ConfigError,
    DeadLetterError,
    Disabled,
    InvalidEvent,
    PartialCapture,
    PayloadTooLarge,
    QueueFull,
)
from uno.event_bus.dead_letter.failure import Failure, describe
from uno.event_bus.dead_letter.letter import DeadLetterReason, NewLetter
from uno.event_bus.dead_letter.retry import RetryPolicy, policy_for
from uno.event_bus.dead_letter.rules import require_seconds, require_whole
from uno.event_bus.dead_letter.spool.spool import Spool
from uno.event_bus.dead_letter.store.receiver import Receiver
from uno.event_bus.dead_letter.telemetry.recorder import NO_RECORDER
from uno.event_bus.dead_letter.telemetry.tracing.captures import CaptureSpans, carried
from uno.event_bus.dead_letter.telemetry.tracing.tracers import harmless

__all__ = ["ARGUMENTS", "Capturer", "check_metadata", "reason_of"]

MOST_ATTEMPTS: Final = 1_000_000_000

_OF_ALL: Final = (
    "reason",
    "error",
    "subscription_id",
    "attempt_count",
    "delay",
    "ordering_key",
    "headers",
    "type",
    "failed_at",
)
ARGUMENTS: Final = {
    "add": (*_OF_ALL, "event_id", "dedupe_key"),
    "add_many": (*_OF_ALL, "event_ids"),
}
"""Verb → its arguments, beside the events."""

_MEANT: Final = {
    "subscription": "subscription_id",
    "id": "event_id",
    "ids": "event_ids",
    "attempt": "attempt_count",
    "attempts": "attempt_count",
    "retry": "delay",
    "timeout": "",
    "concurrency": "",
    "fn": "",
}
"""What other calls of the engine name so → the argument of a capture; empty where it has none."""

SIMILARITY: Final = 0.8
"""How alike a name and an argument's are (difflib's ratio) before it is taken for a typing error."""


def check_metadata(verb: str, metadata: Iterable[str]) -> None:
    """Raise `ConfigError` for a header's name that was surely meant as an argument of `add` or `add_many`."""
    known = ARGUMENTS[verb]
    for name in metadata:
        other = name in _MEANT or any(name in names for names in ARGUMENTS.values())
        meant = _MEANT.get(name) or next(iter(get_close_matches(name, known, n=1, cutoff=SIMILARITY)), "")
        if meant in ("event_id", "event_ids", "dedupe_key") or name == "dedupe_key":
            meant = "event_id" if verb == "add" else "event_ids"
        if other or meant:
            hint = f"; did you mean {meant}?" if meant else ""
            raise ConfigError(
                f"{name} is no argument of {verb}{hint} (a header of that name: headers={{{name!r}: …}}); "
                "nothing was captured"
            )


def reason_of(error: BaseException | str | None) -> DeadLetterReason:
    """Return why an event became a letter, as far as its error tells."""
    if isinstance(error, InvalidEvent):
        return DeadLetterReason.INVALID_EVENT
    if isinstance(error, TimeoutError):
        return DeadLetterReason.TIMEOUT
    return DeadLetterReason.UNKNOWN if error is None else DeadLetterReason.HANDLER_FAILED


class Capturer:
    """Makes letters of events, and puts them into a store."""

    def __init__(self, config: DeadLetterConfig, policy_of: Callable[[str, str | None], RetryPolicy]) -> None:
        self._config = config
        self._policy_of = policy_of
        self.recorder = NO_RECORDER

    def letters(
        self,
        events: Iterable[Any],
        *,
        type: str | None = None,
        reason: str | None = None,
        error: BaseException | str | None = None,
        subscription_id: str | None = None,
        attempt_count: int = 0,
        delay: float | None = None,
        event_ids: Sequence[str | None] | None = None,
        dedupe_key: str | None = None,
        ordering_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        failed_at: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        spans: CaptureSpans | None = None,
    ) -> list[NewLetter | InvalidEvent | PayloadTooLarge]:
        """Return the letters of events that failed alike, by position; nothing is sent.

        They carry the trace context of the call's `spans`, without them the caller's.

        An event that cannot become a letter has its error there. Raises `Disabled`; `ConfigError` for a number
        that is none, or out of bounds; `PayloadTooLarge` and `InvalidEvent` for what all events share.
        """
        if not self._config.enabled:
            raise Disabled
        why = _text("reason", str(reason)) if reason is not None else reason_of(error).value
        subscription_id, ordering_key = _text("subscription_id", subscription_id), _text("ordering_key", ordering_key)
        dedupe_key = _text("dedupe_key", dedupe_key)
        packed_headers = _headers(headers, metadata, None if spans is None else spans.context)
        if len(packed_headers) > self._config.max_payload_bytes:
            raise PayloadTooLarge(len(packed_headers), self._config.max_payload_bytes, "headers")
        failed_at_ms = None if failed_at is None else int(require_seconds("failed_at", failed_at) * 1000)
        attempt_count = require_whole("attempt_count", attempt_count, "attempts", 0, MOST_ATTEMPTS)
        if delay is not None:
            delay = require_seconds("delay", delay)
        failures: dict[str, Failure] = {}
        new_ids = _new_ids(length_hint(events))
        made: list[NewLetter | InvalidEvent | PayloadTooLarge] = []
        for position, event in enumerate(events):
            try:
                event_id = _text("event_id", event_ids[position]) if event_ids is not None else ""
                encoded = self._encode(event, type)
            except (InvalidEvent, PayloadTooLarge) as refusal:
                made.append(refusal)
                continue
            failure = failures.get(encoded.type)
            if failure is None:
                failure = failures[encoded.type] = describe(error, event_type=encoded.type, reason=why)
            made.append(
                NewLetter(
                    event_id=event_id or next(new_ids),
                    type=encoded.type,
                    payload=encoded.payload,
                    content_type=encoded.content_type,
                    subscription=subscription_id,
                    reason=why,
                    error_type=failure.error_type,
                    error=failure.message,
                    traceback=failure.traceback,
                    fingerprint=failure.fingerprint,
                    failed_at_ms=failed_at_ms,
                    attempts=attempt_count,
                    delay_ms=self._delay_ms(delay, encoded.type, subscription_id, error),
                    ordering_key=ordering_key,
                    dedupe_key=dedupe_key,
                    headers=packed_headers
                    if spans is None or not spans.creates
                    else _headers(headers, metadata, spans.create(position)),
                    # With a spool every letter has one home: what a try elsewhere came to, its key there alone knows.
                    has_own_id=not event_id and self._config.spool_dir is None,
                )
            )
        return made

    def _encode(self, event: Any, type: str | None) -> Encoded:
        encoded = event if isinstance(event, Encoded) else encode(event, type_name=type)
        _text("type", encoded.type)
        _text("content_type", encoded.content_type)
        if len(encoded.payload) > self._config.max_payload_bytes:
            raise PayloadTooLarge(len(encoded.payload), self._config.max_payload_bytes)
        return encoded

    def _delay_ms(
        self, delay: float | None, type: str, subscription: str | None, error: BaseException | str | None
    ) -> int:
        if delay is None:
            policy = policy_for(
                self._policy_of(type, subscription), error if isinstance(error, BaseException) else None
            )
            # A policy that makes no attempt by itself: the letter is due, and its first failure parks it.
            delay = policy.first_delay() or 0.0
        return int(delay * 1000)

    async def capture(
        self,
        open_receiver: Callable[[], Awaitable[Receiver]],
        made: Sequence[NewLetter | InvalidEvent | PayloadTooLarge],
        spool: Spool | None = None,
        spans: CaptureSpans | None = None,
    ) -> list[str]:
        """Put letters into the store, or into the spool while that is away; return their ids, by position.

        Raises for one letter its error; for several `PartialCapture` when not all were captured.
        """
        if spans is not None:
            spans.sending(made[0])
        errors: dict[int, DeadLetterError] = {}
        ids: dict[int, str] = {}
        sent = [position for position, new in enumerate(made) if isinstance(new, NewLetter)]
        letters = [new for new in made if isinstance(new, NewLetter)]
        results = await self._capture(open_receiver, letters, spool) if letters else []
        for position, result in zip(sent, results, strict=True):
            if isinstance(result, str):
                ids[position] = result
            else:
                errors[position] = result
        errors |= {position: refusal for position, refusal in enumerate(made) if isinstance(refusal, DeadLetterError)}
        if not errors:
            if spans is not None:
                spans.sent(ids)
            return list(ids.values())
        if len(made) == 1:
            raise errors[0]
        raise PartialCapture(ids, dict(sorted(errors.items())))

    async def put(
        self,
        open_receiver: Callable[[], Awaitable[Receiver]],
        letters: Sequence[NewLetter],
        spool: Spool | None = None,
    ) -> list[str | DeadLetterError]:
        """Capture letters that are made already, within the bounds of this queue; return by position id or error.

        Raises `Disabled`, and what opening the queue does.
        """
        if not self._config.enabled:
            raise Disabled
        results: list[str | DeadLetterError | None] = [self._too_large(new) for new in letters]
        fit = [position for position, refusal in enumerate(results) if refusal is None]
        captured = await self._capture(open_receiver, [letters[position] for position in fit], spool) if fit else []
        for position, result in zip(fit, captured, strict=True):
            results[position] = result
        return [result for result in results if result is not None]

    def _too_large(self, new: NewLetter) -> PayloadTooLarge | None:
        limit = self._config.max_payload_bytes
        if len(new.payload) > limit:
            return PayloadTooLarge(len(new.payload), limit)
        return PayloadTooLarge(len(new.headers), limit, "headers") if len(new.headers) > limit else None

    async def _capture(
        self, open_receiver: Callable[[], Awaitable[Receiver]], letters: Sequence[NewLetter], spool: Spool | None
    ) -> list[str | DeadLetterError]:
        """Put letters into the store or the spool; return by position id or error. Raises what is no error of ours."""
        kept = spool.add(letters, self._put) if spool is not None else self._put(await open_receiver(), letters)
        results = await kept
        self._record(letters, results)
        known: list[str | DeadLetterError] = []
        for result in results:
            if not isinstance(result, str | DeadLetterError):
                raise result
            known.append(result)
        return known

    def _record(self, letters: Sequence[NewLetter], results: Sequence[str | Exception]) -> None:
        if self.recorder is not NO_RECORDER:
            captured = [new for new, result in zip(letters, results, strict=True) if isinstance(result, str)]
            self.recorder.captured(self._config.queue, captured)

    async def _put(self, receiver: Receiver, letters: Sequence[NewLetter]) -> list[str | Exception]:
        return [self._full(receiver) if result is None else result for result in await receiver.add(letters)]

    def _full(self, receiver: Receiver) -> QueueFull:
        return QueueFull(self._config.queue, self._config.max_queue_size, receiver.homes)


def _new_ids(count: int) -> Iterator[str]:
    """Yield event ids, as random as a UUID, drawn `count` (at most 1000) at a time: every draw is a system call.

    None is kept for a later call: a process that forks meanwhile would use it twice.
    """
    while True:
        drawn = token_hex(16 * min(max(1, count), 1000))
        for at in range(0, len(drawn), 32):
            yield drawn[at : at + 32]


def _text(name: str, value: object) -> str:
    """Return a text of the caller's, empty for None; a number or a UUID is taken as its text."""
    if value is None:
        return ""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidEvent(name, "a text with lone surrogates cannot be written as UTF-8") from None
    return text


@harmless
def _inject(headers: dict[str, Any], context: Context | None) -> None:
    propagate.inject(headers, context)


def _headers(headers: Mapping[str, str] | None, metadata: Mapping[str, Any] | None, context: Context | None) -> bytes:
    """Return trace context, metadata and the caller's headers as one JSON object; empty when there are none.

    The trace context is that of `context`, None: of the caller; a trace context in the caller's headers stands alone.
    """
    given = dict(metadata or {}) | dict(headers or {})
    merged: dict[str, Any] = {}
    if not given or not carried(given):
        _inject(merged, context)
    merged |= given
    if not merged:
        return b""
    try:
        return msgspec.json.encode(merged, enc_hook=str)
    except Exception as error:  # str() of the caller's own objects runs here
        raise InvalidEvent("headers", f"cannot be written as JSON ({type(error).__name__}: {error})") from None
