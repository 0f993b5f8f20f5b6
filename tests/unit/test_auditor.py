"""What the audit stream says of a deed: sound JSON, sound UTF-8, never more than its bound."""

import json
from typing import Any

import msgspec
import pytest

from uno.event_bus.dead_letter.auditor import LONGEST_VALUE, LONGEST_WHICH, by_ids, clipped, matching
from uno.event_bus.dead_letter.bulk import discarding, retrying
from uno.event_bus.dead_letter.remote.wire import AuditRecord
from uno.event_bus.dead_letter.store.audit import AuditEntry
from uno.event_bus.dead_letter.where import Where


def test_letters_that_are_named_are_all_told_while_there_is_room() -> None:
    ids = [f"3-1718000000000-{n}" for n in range(100)]
    deed = by_ids(discarding("because"), ids)
    assert json.loads(deed.which) == {"ids": ids}
    assert (deed.verb, deed.count, deed.why, deed.delay_ms) == ("discard", 100, "because", 0)


@pytest.mark.parametrize("id", ["3-1718000000000-0", "", "ö" * 40, '"' * 64, "\x00" * 64, "\udcff" * 64, "9" * 5000])
def test_of_many_letters_it_says_how_many_are_left_out(id: str) -> None:
    """Whatever an id looks like: it may be none."""
    deed = by_ids(retrying(1.5), [id] * 100_000)
    told = json.loads(deed.which)
    assert len(told["ids"]) + told["left_out"] == deed.count == 100_000
    assert LONGEST_WHICH / 2 < len(deed.which.encode()) <= LONGEST_WHICH


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (Where(), {}),
        (Where(state="parked", type=["a", "b"]), {"state": ["parked"], "type": ["a", "b"]}),
    ],
)
def test_a_filter_is_told_by_its_fields(where: Where, told: dict[str, Any]) -> None:
    deed = matching(retrying(1.5), where)
    assert json.loads(deed.which) == {"where": told}
    assert (deed.verb, deed.count, deed.delay_ms) == ("retry", None, 1500)


def test_of_a_long_filter_it_says_how_many_values_are_left_out() -> None:
    where = Where(state="parked", type=[f"type-{n}" * 100 for n in range(50)], event_id=["x"] * 50)
    deed = matching(retrying(1.5), where)
    told = json.loads(deed.which)
    named = [value for values in told["where"].values() for value in values]
    assert len(named) + told["left_out"] == 101 and "parked" in named
    assert max(len(value.encode()) for value in named) == LONGEST_VALUE
    assert len(deed.which.encode()) <= LONGEST_WHICH


@pytest.mark.parametrize(
    ("text", "most", "left"),
    [("ab", 2, "ab"), ("abcdef", 5, "ab…"), ("öööö", 7, "öö…"), ("\udcff", 9, "\\udcff"), ("", 4, "")],
)
def test_what_is_too_long_is_cut_between_characters(text: str, most: int, left: str) -> None:
    assert clipped(text, most) == left and len(left.encode()) <= most


def test_an_entry_goes_over_the_wire_whole() -> None:
    """The HTTP API's record has every field of an entry, but for its version."""
    entry = AuditEntry(id="7-1", call="c", phase="outcome", request_id="r", who="w", verb="park", count=1, done=1)
    record = msgspec.convert(entry, AuditRecord, from_attributes=True)
    assert set(AuditRecord.__struct_fields__) == set(AuditEntry.__struct_fields__) - {"v"}
    assert msgspec.structs.asdict(entry) == msgspec.structs.asdict(record) | {"v": 1}
