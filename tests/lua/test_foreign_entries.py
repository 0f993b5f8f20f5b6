"""Entries that `add` did not write: any XADD of any language is a capture, and nothing in one stops a worker."""

import pytest

from tests.support.clean import assert_clean
from tests.support.look import Look, new
from uno.event_bus.dead_letter.letter import FIELDS, Letter, Verb
from uno.event_bus.dead_letter.store.browse import find, scan, stats, verify
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Verdict

NOW_MS = 1_800_000_000_000

ENTRIES: dict[str, dict[str | bytes, str | bytes]] = {
    "one field": {"payload": "x"},
    "a wrong order": {"payload": "x", "type": "order", "event_id": "e", "v": "1"},
    "no payload": {"type": "order"},
    "unknown fields": {"payload": "x", "colour": "red", "": ""},
    "a later version": {"v": "9", "payload": "x"},
    "bytes that are no text": {b"\xff": b"\xfe", b"payload": b"\0"},
}


@pytest.fixture(autouse=True)
async def opened(shard: Shard) -> None:
    """A worker has been here: the shard has its mark and group."""
    await shard.take("w", 1)


@pytest.mark.parametrize("what", ENTRIES)
async def test_a_plain_xadd_is_a_capture(what: str, shard: Shard, look: Look) -> None:
    """Leased like any other, counted when the mark passes it; unknown fields stay in the entry, whole."""
    id = look.foreign(ENTRIES[what])
    (letter,) = (await shard.take("w", 5)).letters

    def raw(word: str | bytes) -> bytes:
        return word if isinstance(word, bytes) else word.encode()

    sent = {raw(name): raw(value) for name, value in ENTRIES[what].items()}
    known = {name.encode() for name in FIELDS}
    assert letter.id == id
    assert letter.fields == {name: value for name, value in sent.items() if name in known}
    stored = look.fields(id)
    assert dict(zip(stored[::2], stored[1::2], strict=True)) == sent
    assert letter.lease is not None and look.totals == {"captured": 1}
    outcome = Outcome(id, letter.lease.token, Verb.RESOLVE, fingerprint=letter.fingerprint)
    assert await shard.settle("w", [outcome]) == [Verdict.OK]
    assert look.totals == {"captured": 1, "resolved": 1}


async def test_a_field_that_stands_twice_counts_once(shard: Shard, look: Look) -> None:
    """A stream allows it: the engine reads one of the two and goes on."""
    look.client.execute_command("XADD", look.key("letters"), "*", "type", "a", "type", "b", "payload", "x")
    (letter,) = (await shard.take("w", 5)).letters
    assert letter.type in {"a", "b"}
    page = await scan(shard)
    assert len(page.letters) == 1


@pytest.mark.parametrize("moment", ["soon", "", "-1", "nan", "inf", "-inf", "1e999", "0x10", "1 ", "1e400"])
async def test_a_strange_not_before_stops_no_worker(moment: str, shard: Shard, look: Look) -> None:
    """What is no time means now: the letter is leased, and every reply can be read."""
    id = look.foreign({"payload": "x", "not_before": moment})
    taken = await shard.take("w", 5)
    assert [letter.id for letter in taken.letters] == [id]
    assert (await stats(shard))["leased"] == 1


async def test_a_not_before_in_another_form_is_read(shard: Shard, look: Look) -> None:
    """A float of another language is a number, too; the due time is whole ms."""
    id = look.foreign({"payload": "x", "not_before": f"{NOW_MS + 1500}.5"})
    assert (await shard.take("w", 5)).letters == []
    assert look.schedule[id] in {NOW_MS + 1500, NOW_MS + 1501}


async def test_an_entry_with_the_largest_id_can_be_worked_off(shard: Shard, look: Look) -> None:
    """Ids compare as numbers, part by part, also past 2^53."""
    low, high = (
        look.foreign({"payload": "x"}, "9007199254740993-9"),
        look.foreign({"payload": "y"}, "18446744073709551614-5"),
    )
    assert [letter.id for letter in (await shard.take("w", 5)).letters] == [low, high]
    assert (await shard.take("w", 5)).letters == []
    assert await find(shard, high) is not None
    await assert_clean(shard)


async def test_behind_the_last_id_of_all_the_shard_goes_on(shard: Shard, look: Look) -> None:
    """No letter can be captured behind a stranger's; those that are there are run, shown, repaired and verified."""
    (before,) = await shard.add([new()])
    last = look.foreign({"payload": "x"}, "18446744073709551615-18446744073709551615")
    taken = (await shard.take("w", 5)).letters
    assert [letter.id for letter in taken] == [before, last]
    assert (await verify(shard)).violations == []
    await shard.settle("w", [Outcome(letter.id, _token(letter), Verb.RETRY) for letter in taken])
    assert [letter.id for letter in (await scan(shard)).letters] == [before, last]
    assert (await scan(shard, b"18446744073709551615-18446744073709551615")).letters == []
    assert (await shard.repair()).cursor == b""
    taken = (await shard.take("w", 5)).letters
    assert [letter.id for letter in taken] == [before, last]
    await shard.settle("w", [Outcome(letter.id, _token(letter), Verb.RESOLVE) for letter in taken])
    assert (await shard.take("w", 5)).letters == []


def _token(letter: Letter) -> int:
    assert letter.lease is not None
    return letter.lease.token


async def test_a_letter_that_is_not_our_own_is_found_by_its_id(shard: Shard, look: Look) -> None:
    """Sequence numbers after 0, and 0 itself."""
    a, b = look.foreign({"payload": "x"}, "5-0"), look.foreign({"payload": "y"}, "5-1")
    for id in (a, b):
        found = await find(shard, id)
        assert found is not None and found.id == id
    assert await find(shard, "0-5-2") is None and await find(shard, "0-4-0") is None


async def test_strangers_letters_are_booked_once(shard: Shard, look: Look) -> None:
    """Also those that claim our version, and those that a stranger deletes before a worker saw them."""
    look.foreign({"v": "1", "payload": "x"})
    gone = look.foreign({"payload": "y"})
    await shard.add([new()])
    look.client.xdel(look.key("letters"), gone.removeprefix("0-"))
    assert len((await shard.take("w", 5)).letters) == 2
    assert look.totals == {"captured": 2}
    look.foreign({"payload": "z"})
    await shard.take("w", 5)
    assert look.totals == {"captured": 3}


async def test_strangers_letters_are_booked_as_the_mark_passes_them(shard: Shard, look: Look) -> None:
    """Not before, and not by guessing from the length of the stream: others wait behind."""
    for _ in range(12):
        look.foreign({"payload": "x"})
    assert (await shard.take("w", 3)).more
    assert look.totals == {"captured": 3}


async def test_a_deleted_letter_that_waited_is_lost_externally(shard: Shard, look: Look) -> None:
    """It was captured by us, and left without an end."""
    (gone,) = await shard.add([new()])
    look.client.xdel(look.key("letters"), str(gone).removeprefix("0-"))
    assert (await shard.take("w", 5)).letters == []
    assert look.totals == {"captured": 1, "lost_externally": 1}


async def test_a_trimmed_stream_is_booked(shard: Shard, look: Look) -> None:
    """XTRIM took leased, parked and waiting letters: rows and leases go, and the books say how many."""
    await shard.add([new(f"e{i}") for i in range(6)])
    taken = (await shard.take("w", 4)).letters
    assert taken[0].lease is not None
    await shard.settle("w", [Outcome(taken[0].id, taken[0].lease.token, Verb.PARK)])
    look.client.xtrim(look.key("letters"), 0)
    await shard.repair()
    await shard.take("w", 10)
    assert (look.letters, look.leases, look.parked, look.state) == ([], {}, {}, {})
    assert look.totals == {"captured": 6, "parked": 1, "lost_externally": 6}


async def test_letters_in_a_shard_that_nobody_opened_are_found_by_repair(look: Look, shard: Shard) -> None:
    """Without mark and group they cannot be told from letters whose places were lost: they go to the schedule."""
    look.lose("letters", "meta")
    ids = [look.foreign({"payload": "x"}) for _ in range(3)]
    taken = await shard.take("w", 5)
    assert taken.letters == [] and taken.remade
    assert sorted((await shard.repair()).orphaned) == ids
    assert sorted(letter.id for letter in (await shard.take("w", 5)).letters) == ids
    assert look.totals == {"captured": 3, "orphaned": 3}
