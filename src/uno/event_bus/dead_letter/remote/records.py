"""Letters as records that go over the wire, and back."""

from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from uno.event_bus.dead_letter import history
from uno.event_bus.dead_letter.letter import Counters, Letter, LetterState
from uno.event_bus.dead_letter.remote.wire import Attempt, LetterRecord

__all__ = ["letter_of", "record_of"]

TEXTS: Final = (
    "event_id",
    "type",
    "subscription",
    "reason",
    "error_type",
    "error",
    "fingerprint",
    "ordering_key",
    "dedupe_key",
    "content_type",
    "encoding",
    "traceback",
)
"""Fields of the wire format that a record has too; text that is not UTF-8 has replacement characters."""

NUMBERS: Final = {
    "version": "v",
    "failed_at_ms": "failed_at",
    "not_before_ms": "not_before",
    "caller_attempts": "attempts",
}
"""Field of a record → field of the wire format."""


def record_of(letter: Letter, *, whole: bool) -> LetterRecord:
    """Return all that is known of a letter; payload, traceback, headers and history only if it is whole."""
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
        record.history = [Attempt(*msgspec.structs.astuple(each)) for each in letter.history.attempts]
        _give_payload(record, letter)
    return record


def _give_payload(record: LetterRecord, letter: Letter) -> None:
    """Give a record the payload: as it stands where a reader of JSON, and of JSON lines, brings back its very bytes."""
    if not letter.has_payload:
        return
    if letter.is_plain_json and not letter.is_encoded and _is_one_line_of_json(letter.payload):
        record.payload = Raw(letter.payload)
    else:
        record.payload_base64 = letter.payload


def _is_one_line_of_json(payload: bytes) -> bool:
    if b"\n" in payload or b"\r" in payload or payload.strip() != payload:
        return False
    try:
        payload.decode()
        msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def letter_of(record: LetterRecord) -> Letter:
    """Return the letter that a record tells of."""
    fields: dict[bytes, bytes] = {name.encode(): value.encode() for name in TEXTS if (value := getattr(record, name))}
    for name, field in NUMBERS.items():
        if number := getattr(record, name):
            fields[field.encode()] = b"%d" % number
    if record.headers:
        fields[b"headers"] = msgspec.json.encode(record.headers)
    payload = record.payload_base64 if record.payload is UNSET else bytes(record.payload)
    if payload is not UNSET:
        fields[b"payload"] = payload
    attempts = [history.Attempt(*msgspec.structs.astuple(each)) for each in record.history]
    known: dict[str, Any] = {
        "state": LetterState(record.state),
        "counters": Counters(
            record.failures,
            record.crashes,
            record.releases,
            record.redrives,
            record.failures_at_redrive,
            record.crashes_at_redrive,
            record.settled_reason,
        ),
        "packed_history": history.History(attempts).pack() if attempts else b"",
        "since_ms": record.since_ms,
        "due_ms": record.due_ms,
    }
    return Letter.from_fields(record.id, fields, **known)
