"""Letters as records of JSON, and back."""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from uno.event_bus.dead_letter.codec import is_json
from uno.event_bus.dead_letter.history import Attempt as KeptAttempt
from uno.event_bus.dead_letter.history import History
from uno.event_bus.dead_letter.letter import FIELDS, Counters, Letter, LetterState
from uno.event_bus.dead_letter.remote.wire import Attempt, LetterRecord

__all__ = ["letter_of", "record_of"]

LONGEST_RAW: Final = 1_048_576
"""Bytes of a payload that is looked at for whether it is JSON on one line."""

MARGIN: Final = 64
"""Levels of nesting that must be left to a reader, who finds the payload inside of a page."""


def record_of(letter: Letter, *, whole: bool) -> LetterRecord:
    """Return the record of a letter; without `whole` no payload, traceback, headers and history."""
    counters = letter.counters
    record = LetterRecord(
        id=letter.id,
        state=letter.state.value,
        type=letter.type,
        event_id=letter.event_id,
        subscription=letter.subscription,
        reason=letter.reason,
        settled_reason=counters.reason,
        error_type=letter.error_type,
        error=letter.error,
        fingerprint=letter.fingerprint,
        captured_at_ms=letter.captured_at_ms,
        failed_at_ms=letter.failed_at_ms,
        not_before_ms=letter.not_before_ms,
        due_ms=letter.due_ms,
        since_ms=letter.since_ms,
        failures=counters.failures,
        crashes=counters.crashes,
        releases=counters.releases,
        redrives=counters.redrives,
        failures_at_redrive=counters.failures_at_redrive,
        crashes_at_redrive=counters.crashes_at_redrive,
        caller_attempts=letter.caller_attempts,
        ordering_key=letter.ordering_key,
        dedupe_key=letter.dedupe_key,
        version=letter.version,
        content_type=letter.content_type,
        encoding=letter.encoding,
    )
    if whole:
        record.traceback = letter.traceback
        record.headers = letter.headers
        record.history = [
            Attempt(a.started_ms, a.worker, a.duration_s, a.error_type, a.message) for a in letter.history.attempts
        ]
        if letter.has_payload:
            record.payload = _raw(letter)
            if record.payload is UNSET:
                record.payload_base64 = letter.payload
    return record


def _raw(letter: Letter) -> Raw | UnsetType:
    """Return the payload as it stands, if a reader of JSON gets it back byte for byte; else UNSET."""
    payload = letter.payload
    if letter.is_encoded or not is_json(letter.content_type) or len(payload) > LONGEST_RAW:
        return UNSET
    if not payload or payload != payload.strip(b" \t\r\n") or b"\n" in payload or b"\r" in payload:
        return UNSET
    try:
        payload.decode()
        msgspec.json.decode(payload, type=Raw)
        msgspec.json.decode(b"[" * MARGIN + payload + b"]" * MARGIN, type=Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UNSET
    return Raw(payload)


_STATES: Final = {state.value: state for state in LetterState}


def letter_of(record: LetterRecord) -> Letter:
    """Return the letter of a record: what can be seen of it, but for texts that are no UTF-8, is as it was.

    A state that this version does not know is shown as held: nothing acts on what a record says.
    """
    texts: dict[str, Any] = {
        "v": str(record.version) if record.version else "",
        "failed_at": str(record.failed_at_ms) if record.failed_at_ms else "",
        "attempts": str(record.caller_attempts),
        "not_before": str(record.not_before_ms) if record.not_before_ms else "",
        "headers": msgspec.json.encode(record.headers).decode() if record.headers else "",
        "payload": _payload(record),
    }
    values: list[bytes | None] = []
    for name in FIELDS:
        value = texts[name] if name in texts else getattr(record, name)
        values.append(value.encode() if isinstance(value, str) else value)
    return Letter(
        record.id,
        values,
        state=_STATES.get(record.state, LetterState.HELD),
        counters=Counters(
            record.failures,
            record.crashes,
            record.releases,
            record.redrives,
            record.failures_at_redrive,
            record.crashes_at_redrive,
            record.settled_reason,
        ),
        packed_history=_packed(record.history),
        since_ms=record.since_ms,
        due_ms=record.due_ms,
    )


def _payload(record: LetterRecord) -> bytes | None:
    if not isinstance(record.payload_base64, UnsetType):
        return record.payload_base64
    return None if isinstance(record.payload, UnsetType) else bytes(record.payload)


def _packed(attempts: list[Attempt]) -> bytes:
    if not attempts:
        return b""
    kept = [KeptAttempt(a.started_ms, a.worker, a.duration_s, a.error_type, a.message) for a in attempts]
    return History(kept).pack()
