"""A letter's history: it comes back as it was, stays small, and costs nothing but the past when it is damaged."""

import pytest

from uno.event_bus.dead_letter.history import HISTORY_LENGTH, PACKED_BYTES, Attempt, History


def attempt(number: int = 0, message: str = "") -> Attempt:
    return Attempt(1_718_000_000_000 + number, "worker-1", 0.25, "ValueError", message)


def test_history_comes_back_as_it_was() -> None:
    """Attempts, trace context, and since when nobody handled it."""
    history = History([attempt(1, "boom"), attempt(2)], {"traceparent": "00-1"}, 5)
    assert History.unpack(history.pack()) == history


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x90\x90", b"\x01", b"\x93\xc0\xc0\xc0", b"not ours"], ids=repr)
def test_history_that_is_not_ours_is_empty(packed: bytes) -> None:
    """A damaged history costs the past, not the letter."""
    assert History.unpack(packed) == History([], {}, 0)


def test_history_keeps_the_last_twenty_attempts() -> None:
    """The oldest go first."""
    kept = History.unpack(History([attempt(n) for n in range(50)]).pack()).attempts
    assert kept == [attempt(n) for n in range(50 - HISTORY_LENGTH, 50)]


def test_history_stays_within_two_kib() -> None:
    """Long messages leave room for fewer attempts."""
    history = History([attempt(n, "x" * 120) for n in range(20)], {"traceparent": "00-1"})
    packed = history.pack()
    kept = History.unpack(packed).attempts
    assert len(packed) <= PACKED_BYTES
    assert 5 < len(kept) < 20
    assert kept[-1] == attempt(19, "x" * 120)
    assert len(history.attempts) == 20, "packing changes nothing"


def test_histories_share_nothing() -> None:
    """Defaults are not one list for all."""
    one, other = History(), History()
    one.attempts.append(attempt())
    assert other.attempts == []
