"""scan, find, stats: what operators see; nothing of it writes, and a page is bounded."""

import pytest

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import Counters, Letter, LetterState, Verb
from uno.event_bus.dead_letter.store.browse import Where, find, scan, stats
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000
STATES = ("leased", "scheduled", "suspect", "held", "parked", "waiting")


async def walk(shard: Shard, *, most: int = 100, where: Where | None = None, whole: bool = True) -> list[Letter]:
    found, cursor = [], b"-"
    while cursor:
        cursor, _, letters = await scan(shard, cursor, most=most, where=where, whole=whole)
        assert len(letters) <= most
        found += letters
    return found


@pytest.fixture
async def ids(shard: Shard, look: Look) -> dict[str, str]:
    """State → the letter in it."""
    added = await shard.add([new(name, type=f"t-{name[0]}", fingerprint="f") for name in STATES[:5]])
    ids = dict(zip(STATES, map(str, added), strict=False))
    await shard.take("w", 5)
    look.age(60_000, [ids["suspect"]])
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    verbs = {"scheduled": Verb.RETRY, "held": Verb.RETRY, "parked": Verb.PARK}
    outcomes = [Outcome(ids[name], TOKEN, verb, 9_000, True, "why", b"h") for name, verb in verbs.items()]
    await shard.settle("w", outcomes)
    await shard.hold([Seen(ids["held"], LetterState.SCHEDULED, NOW_MS + 9_000)])
    (ids["waiting"],) = map(str, await shard.add([new("waiting", type="t-w", traceback="tb")]))
    return ids


async def test_each_letter_is_shown_with_its_state(shard: Shard, look: Look, ids: dict[str, str]) -> None:
    """State, since when, counters, history, fields; oldest capture first; and no byte is written."""
    before = look.snapshot()
    letters = await walk(shard)
    assert [letter.id for letter in letters] == [ids[state] for state in STATES]
    assert [letter.state.value for letter in letters] == list(STATES)
    since = {letter.state.value: letter.since_ms for letter in letters}
    assert since == {
        "leased": 0,
        "scheduled": NOW_MS + 9_000,
        "suspect": NOW_MS,
        "held": NOW_MS,
        "parked": NOW_MS,
        "waiting": 0,
    }
    assert letters[4].counters == Counters(failures=1, reason="why") and letters[4].packed_history == b"h"
    assert letters[2].counters == Counters(crashes=1) and letters[5].counters == Counters()
    assert letters[5].payload == b'"waiting"' and letters[5].traceback == "tb"
    assert look.snapshot() == before


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6, 7])
async def test_pages_of_any_size_show_each_letter_once(most: int, shard: Shard, ids: dict[str, str]) -> None:
    """The cursor goes on exactly where the page ended."""
    assert [letter.id for letter in await walk(shard, most=most)] == [ids[state] for state in STATES]


@pytest.mark.parametrize(
    ("where", "states"),
    [
        ({"state": ["parked"]}, ["parked"]),
        ({"state": ["parked", "held"]}, ["held", "parked"]),
        ({"type": ["t-s"]}, ["scheduled", "suspect"]),
        ({"type": ["t-s"], "state": ["suspect", "held"]}, ["suspect"]),
        ({"event_id": ["leased", "waiting", "nobody"]}, ["leased", "waiting"]),
        ({"fingerprint": ["f"], "state": ["waiting"]}, []),
        ({"fingerprint": [""]}, ["waiting"]),
        ({"colour": ["red"]}, []),
        ({"colour": [""]}, list(STATES)),
        ({}, list(STATES)),
    ],
)
async def test_a_filter_shows_what_matches(where: Where, states: list[str], shard: Shard, ids: dict[str, str]) -> None:
    """Values of one name are alternatives, different names must all match; a missing field is empty."""
    assert [letter.state.value for letter in await walk(shard, where=where, most=2)] == states
    assert len(ids) == 6


async def test_a_short_page_leaves_out_payload_and_traceback(shard: Shard, ids: dict[str, str]) -> None:
    """What a table does not show is not sent."""
    for letter in await walk(shard, whole=False):
        assert not {b"payload", b"traceback"} & set(letter.fields)
        assert letter.type and letter.event_id
    assert len(ids) == 6


async def test_a_page_looks_at_no_more_than_five_hundred(shard: Shard) -> None:
    """A filter that matches little gives short or empty pages, and a cursor."""
    for part in range(2):
        await shard.add(several(600, f"{part}-"))
    cursor, _, letters = await scan(shard, most=10, where={"event_id": ["1-599"]})
    assert letters == [] and cursor
    found = await walk(shard, most=10, where={"event_id": ["1-599"]})
    assert [letter.event_id for letter in found] == ["1-599"]


async def test_a_page_of_large_letters_is_bounded_by_bytes(shard: Shard) -> None:
    """4 MiB of bodies, and at most ten entries more."""
    for _ in range(3):
        await shard.add(several(10, payload=b"x" * 700_000), window_ms=0)
    page = await scan(shard, most=100)
    assert len(page.letters) == 10 and page.cursor


async def test_an_orphan_is_shown_where_repair_will_put_it(shard: Shard, look: Look, ids: dict[str, str]) -> None:
    """Scheduled: an operator never sees a letter in no state."""
    look.client.xgroup_delconsumer(look.key("letters"), "workers", "w")
    found = await find(shard, ids["leased"])
    assert found is not None and found.state is LetterState.SCHEDULED
    await shard.repair()


async def test_find_gives_the_letter_or_nothing(shard: Shard, ids: dict[str, str]) -> None:
    """By its exact id; not its neighbour."""
    for state, id in ids.items():
        found = await find(shard, id)
        assert found is not None and (found.id, found.state.value) == (id, state)
    head, _, seq = ids["waiting"].rpartition("-")
    assert await find(shard, f"{head}-{int(seq) + 1}") is None


@pytest.mark.parametrize(
    "id",
    ["0-0-0", "0-0-1", "0-1-0", f"0-{2**64 - 1}-{2**64 - 1}", f"0-{2**64}-0", f"0-5-{2**64}", f"0-{10**30}-{10**30}"],
)
async def test_an_id_that_no_letter_can_have_is_not_found(id: str, shard: Shard, ids: dict[str, str]) -> None:
    """What a user types is no reason to say that Redis is away."""
    assert await find(shard, id) is None
    assert len(ids) == 6


async def test_stats_count_what_is_there(shard: Shard, look: Look, ids: dict[str, str]) -> None:
    """States, totals, the oldest letter, the next due times."""
    before = look.snapshot()
    found = await stats(shard)
    expected: dict[str, int | str] = {
        "open": 6,
        "leased": 1,
        "scheduled": 1,
        "suspect": 1,
        "held": 1,
        "parked": 1,
        "consumers": 1,
        "error_groups": 1,
        "oldest": ids["leased"].removeprefix("0-"),
        "next_due": NOW_MS + 9_000,
        "suspect_due": NOW_MS,
        "waiting_due": NOW_MS,
        "now": NOW_MS,
        "lead_ms": 0,
        "new_error_groups": 1,
        "captured": 6,
        "retried": 2,
        "parked_total": 1,
        "crashed": 1,
        "token": TOKEN,
        "epoch": 1,
    }
    assert expected.items() <= found.items()
    assert look.snapshot() == before


async def test_stats_of_an_empty_shard_are_noughts(shard: Shard, look: Look) -> None:
    """And nothing is made."""
    found = await stats(shard)
    assert (found["open"], found["leased"], found["oldest"], found["next_due"]) == (0, 0, "", "")
    assert found["waiting_due"] == ""
    assert (await scan(shard)) == (b"", NOW_MS, []) and look.snapshot() == {}


async def test_stats_tell_when_the_first_letter_that_waits_is_due(shard: Shard, look: Look) -> None:
    """Of those past the mark; a stranger's, that says nothing of it, since it is there."""
    await shard.add([new("a", delay_ms=700), new("b")])
    assert (await stats(shard))["waiting_due"] == NOW_MS + 700
    await shard.take("w", 2)
    assert (await stats(shard))["waiting_due"] == ""
    foreign = look.foreign({"payload": "x"})
    assert (await stats(shard))["waiting_due"] == int(foreign.split("-")[1])
