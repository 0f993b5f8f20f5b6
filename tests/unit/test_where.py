"""where: what a filter says, and which ones are refused."""

from typing import Any

import pytest

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.letter import DeadLetterReason, LetterState
from uno.event_bus.dead_letter.where import Where


@pytest.mark.parametrize(
    ("value", "conditions"),
    [
        (None, {}),
        ({}, {}),
        ({"type": "Order"}, {"type": ("Order",)}),
        ({"type": ["a", "b"], "subscription": ""}, {"type": ("a", "b"), "subscription": ("",)}),
        ({"state": LetterState.PARKED}, {"state": ("parked",)}),
        ({"state": ["parked", LetterState.HELD]}, {"state": ("parked", "held")}),
        ({"reason": (DeadLetterReason.STALLED,)}, {"reason": ("stalled",)}),
        (Where(event_id="e"), {"event_id": ("e",)}),
        ({"type": None}, {}),
    ],
)
def test_a_filter_is_its_fields_with_their_values(value: Any, conditions: dict[str, tuple[str, ...]]) -> None:
    """One text is one value; None is no condition."""
    assert Where.of(value).conditions() == conditions


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"typ": "a"}, "'typ' is not a field to filter by; did you mean 'type'"),
        ({"colour": "red"}, "allowed are state, type"),
        ({"state": "gone"}, "state is 'gone'; allowed are waiting, leased"),
        ({"type": []}, "type has no value; leave it out to match any"),
        ({"state": ()}, "state has no value"),
        ({"state": 5}, "state is 5; allowed are a text, and a list of texts"),
        ({"type": ["a", "b\ud800"]}, "no letter has it: UTF-8 cannot say it"),
        ({"type": ["a", 3]}, "type is"),
        ({"type": b"abc"}, "type is"),
        ({"type": (name for name in "ab")}, "type is"),
        (["state"], "where is"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(value: Any, message: str) -> None:
    """An empty list above all, or one that can be read only once: as no condition they would choose every letter."""
    with pytest.raises(ConfigError, match=message):
        Where.of(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "every letter"),
        ({"type": "a"}, "letters with type 'a'"),
        (
            {"state": ["held", LetterState.PARKED], "type": "a\n"},
            "letters with state 'held' or 'parked' and type 'a\\n'",
        ),
    ],
)
def test_a_filter_reads_as_one_line(value: Any, text: str) -> None:
    """For a log, whatever its values are."""
    assert str(Where.of(value)) == text
