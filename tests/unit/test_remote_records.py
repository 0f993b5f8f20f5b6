"""Letters go over the wire and come back as they were."""

import msgspec
import pytest

from uno.event_bus.dead_letter.history import Attempt, History
from uno.event_bus.dead_letter.letter import Counters, Letter, LetterState
from uno.event_bus.dead_letter.remote.records import letter_of, record_of
from uno.event_bus.dead_letter.remote.wire import LetterRecord

FIELDS = {
    b"v": b"1",
    b"event_id": b"e-1",
    b"type": "Ordér".encode(),
    b"subscription": b"send-receipt",
    b"reason": b"handler_failed",
    b"error_type": b"shop.Broken",
    b"error": b"it broke",
    b"traceback": b"Traceback\n  line",
    b"fingerprint": b"1:00",
    b"failed_at": b"1718000000000",
    b"attempts": b"2",
    b"not_before": b"1718000060000",
    b"ordering_key": b"order-7",
    b"dedupe_key": b"k",
    b"content_type": b"application/json",
    b"encoding": b"",
    b"headers": b'{"traceparent":"00-1-2-01","n":1}',
    b"payload": b'{"n":1}',
}


def whole(**fields: bytes) -> Letter:
    known = FIELDS | {name.encode(): value for name, value in fields.items()}
    return Letter.from_fields(
        "3-1718000000001-2",
        known,
        state=LetterState.PARKED,
        counters=Counters(3, 1, 2, 1, 1, 0, "stalled"),
        packed_history=History([Attempt(1718000000000, "w-1", 0.25, "shop.Broken", "it broke")]).pack(),
        since_ms=1718000070000,
        due_ms=1718000065000,
    )


def there_and_back(letter: Letter, *, only_head: bool = False) -> Letter:
    sent = msgspec.json.encode(record_of(letter, whole=not only_head))
    assert b"\n" not in sent
    return letter_of(msgspec.json.decode(sent, type=LetterRecord))


def facts(letter: Letter) -> dict[str, object]:
    names = (
        "id",
        "state",
        "counters",
        "since_ms",
        "due_ms",
        "payload",
        "has_payload",
        "headers",
        "version",
        "traceback",
    )
    return {name: getattr(letter, name) for name in names} | {
        "history": letter.history.attempts,
        "fields": letter.fields,
    }


def test_a_whole_letter_comes_back_as_it_was() -> None:
    """Every field, counter and attempt."""
    assert facts(there_and_back(whole())) == facts(whole())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b' {"n":1}',
        b'{"n":\n1}',
        b'{"n":1.0000000000000000001, "n": 2}',
        b"123456789012345678901234567890",
        b'{"a":NaN}',
        b'"\xff"',
        b"{",
        b"\x00\x01\xff",
        b"[" * 2000,
    ],
)
def test_the_bytes_of_a_payload_come_back(payload: bytes) -> None:
    """Whether they are sound JSON on one line, or not."""
    assert there_and_back(whole(payload=payload)).payload == payload


def test_bytes_of_another_type_are_not_taken_for_json() -> None:
    """They only look like it."""
    record = record_of(whole(content_type=b"text/plain"), whole=True)
    assert record.payload_base64 == b'{"n":1}'
    assert record.payload is msgspec.UNSET


def test_a_letter_without_payload_comes_back_without() -> None:
    """Of a stranger's entry."""
    letter = Letter.from_fields("0-1-0", {b"type": b"x"}, state=LetterState.WAITING)
    assert not there_and_back(letter).has_payload


def test_the_head_of_a_letter_has_no_body() -> None:
    """Lists leave payload, traceback, headers and history out."""
    head = there_and_back(whole(), only_head=True)
    assert (head.payload, head.traceback, head.headers, head.history.attempts) == (b"", "", {}, [])
    assert (head.error, head.counters) == ("it broke", whole().counters)


def test_text_that_is_not_utf8_is_shown_with_replacement_characters() -> None:
    """As everywhere else."""
    assert there_and_back(whole(error=b"caf\xe9")).error == "caf\N{REPLACEMENT CHARACTER}"
