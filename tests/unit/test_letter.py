"""The vocabulary: letters decode lazily and survive any bytes; counters and leases keep their words."""

from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter import letter as module
from uno.event_bus.dead_letter.history import History
from uno.event_bus.dead_letter.letter import (
    FIELDS,
    Counters,
    DeadLetterReason,
    Lease,
    Letter,
    LetterState,
    NewLetter,
)

ENTRY = {
    b"v": b"1",
    b"event_id": b"evt-1",
    b"type": "größe".encode(),
    b"subscription": b"mailer",
    b"reason": b"handler_failed",
    b"error_type": b"ValueError",
    b"error": b"boom",
    b"traceback": b"Traceback",
    b"fingerprint": b"1:00",
    b"failed_at": b"1718000000000",
    b"attempts": b"3",
    b"not_before": b"1718000060000",
    b"ordering_key": b"customer-7",
    b"dedupe_key": b"d",
    b"content_type": b"application/json",
    b"encoding": b"",
    b"payload": b"\x00\xff",
    b"headers": b'{"traceparent":"00-1"}',
}

ODD_BYTES = [b"\xff\xfe", b"-1", b"1.5", b" 1", "١".encode(), b"", b"[", b"null", b"[1]", b'"x"', b"1" * 30]


def letter(fields: dict[bytes, bytes], **others: object) -> Letter:
    return Letter.from_fields("2-1718000000000-5", fields, state=LetterState.LEASED, **others)


def test_names_are_exported_in_order() -> None:
    """`__all__` is sorted, and each name exists."""
    assert sorted(module.__all__, key=lambda name: (not name.isupper(), name)) == module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


def test_reasons_are_those_of_the_public_contract() -> None:
    """Their texts are stored, and counted by metrics."""
    assert [reason.name for reason in DeadLetterReason] == [
        "HANDLER_FAILED",
        "TIMEOUT",
        "INVALID_EVENT",
        "UNHANDLED",
        "STALLED",
        "UNKNOWN",
    ]
    assert all(reason.value == reason.name.lower() for reason in DeadLetterReason)


def test_letter_shows_every_field_of_the_wire_format() -> None:
    """Each field has its attribute, texts as text and times as ms."""
    one = letter(ENTRY)
    assert set(ENTRY) == {name.encode() for name in FIELDS}
    assert (one.version, one.event_id, one.type, one.subscription) == (1, "evt-1", "größe", "mailer")
    assert (one.reason, one.error_type, one.error) == ("handler_failed", "ValueError", "boom")
    assert (one.traceback, one.fingerprint) == ("Traceback", "1:00")
    assert (one.failed_at_ms, one.not_before_ms, one.caller_attempts) == (1718000000000, 1718000060000, 3)
    assert (one.ordering_key, one.dedupe_key) == ("customer-7", "d")
    assert (one.content_type, one.encoding, one.payload) == ("application/json", "", b"\x00\xff")
    assert one.headers == {"traceparent": "00-1"}
    assert one.captured_at_ms == 1718000000000


def test_a_strangers_capture_needs_nothing_but_a_payload() -> None:
    """A plain XADD with fewer fields is a letter too."""
    one = letter({b"payload": b"{}"})
    assert (one.version, one.type, one.content_type, one.failed_at_ms, one.headers) == (0, "", "", 0, {})
    assert (one.attempt, one.history.attempts) == (1, [])


@pytest.mark.parametrize("odd", ODD_BYTES, ids=repr)
def test_no_bytes_in_a_field_raise(odd: bytes) -> None:
    """Nothing in an entry ever stops a worker."""
    one = letter(dict.fromkeys(ENTRY, odd), packed_history=odd)
    for name in dir(one):
        if not name.startswith("_"):
            getattr(one, name)
    assert one.payload == odd
    assert isinstance(one.headers, dict)
    repr(one)


@given(st.binary())
def test_any_bytes_in_a_field_are_shown_somehow(odd: bytes) -> None:
    """Text that is not UTF-8 is replaced, numbers that are none are 0, the stored bytes stay."""
    one = letter(dict.fromkeys(ENTRY, odd), packed_history=odd)
    assert isinstance(one.type, str)
    assert one.failed_at_ms >= 0
    assert isinstance(one.headers, dict)
    assert isinstance(one.history, History)
    assert odd in one.values


def test_number_of_thousands_of_digits_does_not_raise() -> None:
    """Python refuses to read it, a stranger may write it."""
    assert letter(ENTRY | {b"failed_at": b"1" * 5000}).failed_at_ms >= 0


def test_fields_come_by_name_or_by_place() -> None:
    """Scripts answer values in the order of the wire format; a field that nobody knows is left out."""
    by_place = Letter("2-1718000000000-5", list(ENTRY.values()), state=LetterState.LEASED)
    by_name = letter(dict(reversed(ENTRY.items())) | {b"colour": b"blue"})
    assert list(by_name.values) == list(by_place.values)


def test_attempt_counts_the_failures_before_it() -> None:
    """The attempt that runs, or comes next, is one more than what failed; redrive does not take it back."""
    assert letter(ENTRY).attempt == 1
    assert letter(ENTRY, counters=Counters(failures=3, failures_at_redrive=3, redrives=1, crashes=9)).attempt == 4


def test_retries_count_from_the_last_redrive() -> None:
    """What `max_retries` limits."""
    assert Counters(failures=7, failures_at_redrive=5).failures_since_redrive == 2


def test_repr_of_a_letter_shows_no_payload() -> None:
    """Payloads hold what logs must not."""
    assert repr(letter(ENTRY | {b"payload": b"secret"})) == (
        "Letter(2-1718000000000-5, type='größe', subscription='mailer', state=leased)"
    )


def test_capture_key_is_the_dedupe_key_or_event_and_subscription() -> None:
    """Two subscriptions of one event are two letters; one dedupe key is one."""
    assert NewLetter("e", "t", b"").capture_key == "e\0"
    assert NewLetter("e", "t", b"", subscription="s").capture_key == "e\0s"
    assert NewLetter("e", "t", b"", subscription="s", dedupe_key="d").capture_key == "d"


# --- lease -----------------------------------------------------------------------------------------------


def test_lease_is_mine_until_it_runs_out_or_is_lost() -> None:
    """By this process's own clock, or by the store's word."""
    lease = Lease("worker-1", 7, monotonic() + 60)
    assert lease.still_mine()
    lease.lost = True
    assert not lease.still_mine()
    assert not Lease("worker-1", 7, monotonic() - 0.001).still_mine()
