"""repair: what strangers, lost keys and dead scripts left in no place, or in two, is put back."""

from collections.abc import Callable
from itertools import combinations

import pytest

from tests.support.clean import assert_clean, verified
from tests.support.look import Look, several
from uno.event_bus.dead_letter.errors import LayoutMismatch
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Repaired, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000
PLACES = ("leased", "suspects", "schedule", "held", "parked")
"""Strongest first."""


async def walk(shard: Shard, *, idle_ms: int = 3_600_000) -> Repaired:
    """Repair to the end of the walk; what it did in all."""
    total, cursor = Repaired(b""), b""
    while True:
        part = await shard.repair(cursor, idle_ms=idle_ms)
        total.orphaned += part.orphaned
        total.doubled += part.doubled
        total.rows_removed += part.rows_removed
        if not (cursor := part.cursor):
            return total


async def one_in_each_place(shard: Shard, look: Look) -> dict[str, str]:
    """Place → the letter that stands there, with a state record each but the leased one."""
    ids = [str(id) for id in await shard.add(several(5))]
    found = dict(zip(PLACES, ids, strict=True))
    await shard.take("w", 5)
    look.age(60_000, [found["suspects"]])
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    verbs = {"schedule": Verb.RETRY, "held": Verb.RETRY, "parked": Verb.PARK}
    await shard.settle("w", [Outcome(found[place], TOKEN, verb, 60_000) for place, verb in verbs.items()])
    await shard.hold([Seen(found["held"], LetterState.SCHEDULED, NOW_MS + 60_000)])
    assert [look.where(id) for id in ids] == [[place] for place in PLACES]
    return found


async def test_a_whole_shard_is_left_as_it_is(shard: Shard, look: Look) -> None:
    """Nothing is written where nothing is wrong."""
    await one_in_each_place(shard, look)
    before = look.snapshot()
    assert await walk(shard) == Repaired(b"")
    assert look.snapshot() == before


STROKES: dict[str, Callable[[Look, str], object]] = {
    "XACK": lambda look, id: look.client.xack(look.key("letters"), "workers", id.removeprefix("0-")),
    "XGROUP DELCONSUMER": lambda look, id: look.client.xgroup_delconsumer(look.key("letters"), "workers", "w"),
    "XGROUP DESTROY": lambda look, id: look.client.xgroup_destroy(look.key("letters"), "workers"),
    "group and meta": lambda look, id: look.lose_group_and_meta(),
}


@pytest.mark.parametrize("stroke", STROKES)
async def test_a_lease_that_a_stranger_ended_goes_to_the_schedule(stroke: str, shard: Shard, look: Look) -> None:
    """Due now, counted as orphaned; no other letter moves."""
    found = await one_in_each_place(shard, look)
    STROKES[stroke](look, found["leased"])
    assert (await walk(shard)).orphaned == [found["leased"]]
    assert look.schedule[found["leased"]] == NOW_MS
    assert look.totals["orphaned"] == 1
    assert [look.where(found[place]) for place in PLACES[1:]] == [[place] for place in PLACES[1:]]


@pytest.mark.parametrize("index", ["schedule", "suspects", "held", "parked"])
async def test_letters_of_a_lost_index_go_to_the_schedule(index: str, shard: Shard, look: Look) -> None:
    """A key that was deleted or evicted loses places, not letters."""
    found = await one_in_each_place(shard, look)
    look.lose(index)
    assert (await walk(shard)).orphaned == [found[index]]
    assert look.where(found[index]) == ["schedule"] and found[index] in look.state


async def test_all_indexes_may_be_lost_at_once(shard: Shard, look: Look) -> None:
    """Then every letter that was taken in is scheduled."""
    await one_in_each_place(shard, look)
    look.lose("meta", "schedule", "suspects", "held", "parked", "state", "history", "groups", "group_info")
    look.client.xgroup_destroy(look.key("letters"), "workers")
    assert (await walk(shard)).orphaned == look.letters
    assert sorted(look.schedule) == look.letters
    assert look.totals == {"captured": 5, "orphaned": 5}


@pytest.mark.parametrize(("stronger", "weaker"), list(combinations(PLACES, 2)))
async def test_of_two_places_the_stronger_one_counts(stronger: str, weaker: str, shard: Shard, look: Look) -> None:
    """A script died between its writes: a lease beats suspects, then schedule, held, parked."""
    found = await one_in_each_place(shard, look)
    look.client.zadd(look.key(weaker), {found[stronger].removeprefix("0-"): NOW_MS})
    assert [kind for kind, *_ in (await verified(shard)).violations] == ["twice"]
    assert await walk(shard) == Repaired(b"", [], [found[stronger]], 0)
    assert look.where(found[stronger]) == [stronger]


@pytest.mark.parametrize("key", ["schedule", "suspects", "held", "parked", "state", "history"])
@pytest.mark.parametrize(
    "member", ["1-1", "no id", "", "9-9-9", "18446744073709551616-1", "1-18446744073709551616", "1" * 400 + "-1"]
)
async def test_a_row_without_a_letter_is_removed(key: str, member: str, shard: Shard, look: Look) -> None:
    """Also one that no stream could hold."""
    await one_in_each_place(shard, look)
    before = {name: look.client.dump(look.key(name)) for name in ("schedule", "held", "parked")}
    if key in {"state", "history"}:
        look.client.hset(look.key(key), member, b"x")
    else:
        look.client.zadd(look.key(key), {member: 1})
    assert (await walk(shard)).rows_removed == 1
    await assert_clean(shard)
    assert look.client.dump(look.key("parked")) == before["parked"] or key == "parked"


async def test_deleted_letters_leave_no_rows_and_are_booked(shard: Shard, look: Look) -> None:
    """A stranger's XDEL of a letter in each place."""
    await one_in_each_place(shard, look)
    look.client.xdel(look.key("letters"), *[id.removeprefix("0-") for id in look.letters])
    await walk(shard)
    assert (look.leases, look.suspects, look.schedule, look.held, look.parked) == ({}, {}, {}, {}, {})
    assert (look.state, look.history) == ({}, {})
    assert look.totals["lost_externally"] == 5


@pytest.mark.parametrize("key", ["schedule", "suspects", "held", "parked"])
async def test_a_row_ahead_of_the_mark_is_removed(key: str, shard: Shard, look: Look) -> None:
    """The intake will come to the letter, and would lease it beside the row."""
    await shard.take("w", 1)
    (id,) = map(str, await shard.add(several(1)))
    look.client.zadd(look.key(key), {id.removeprefix("0-"): NOW_MS})
    assert ("ahead", id, {"suspects": "suspect", "schedule": "scheduled"}.get(key, key)) in (
        await verified(shard)
    ).violations
    assert (await walk(shard)).rows_removed == 1
    assert look.where(id) == []
    assert [letter.id for letter in (await shard.take("w", 5)).letters] == [id]


async def test_what_happened_to_a_letter_ahead_of_the_mark_is_kept(shard: Shard, look: Look) -> None:
    """A mark that was set back loses places, not counters; and keeping them is no violation."""
    found = await one_in_each_place(shard, look)
    look.client.hset(look.key("meta"), "mark", "0-0")
    before = look.state
    await walk(shard)
    assert look.state == before and set(before) == {found[place] for place in PLACES[1:]}
    await assert_clean(shard)
    taken = (await shard.take("heir", 10)).letters
    assert [letter.id for letter in taken] == [found[place] for place in PLACES[1:]]
    assert look.leases[found["leased"]] == ("w", TOKEN)


async def test_consumers_with_nothing_pending_are_removed_when_idle(shard: Shard, look: Look) -> None:
    """Never one that has letters: DELCONSUMER would forget them."""
    await shard.add(several(2))
    await shard.take("busy", 1)
    (letter,) = (await shard.take("done", 1)).letters
    assert letter.lease is not None
    await shard.settle("done", [Outcome(letter.id, letter.lease.token, Verb.RESOLVE)])
    await walk(shard)
    assert look.consumers == {"busy", "done"}
    await walk(shard, idle_ms=-1)
    assert look.consumers == {"busy"} and len(look.leases) == 1


async def test_a_large_shard_is_walked_in_parts(shard: Shard, look: Look) -> None:
    """At most 500 entries a call; every orphan is found, wherever it stands."""
    for part in range(3):
        await shard.add(several(1000, f"{part}-"))
        await shard.take(f"w{part}", 1000)
    await shard.take("w", 10)
    look.client.xgroup_delconsumer(look.key("letters"), "workers", "w1")
    orphaned, cursor, parts = [], b"", 0
    while True:
        part_done = await shard.repair(cursor)
        assert len(part_done.orphaned) <= 510
        orphaned += part_done.orphaned
        parts += 1
        if not (cursor := part_done.cursor):
            break
    assert sorted(orphaned) == sorted(look.schedule) and len(orphaned) == 1000
    assert parts >= 6
    assert look.totals == {"captured": 3000, "orphaned": 1000}


async def test_large_bodies_bound_a_part(shard: Shard) -> None:
    """4 MiB of bodies a call, and ten entries more."""
    for _ in range(4):
        await shard.add(several(5, payload=b"x" * 900_000), window_ms=0)
    while (await shard.take("w", 100)).letters:
        pass
    assert (await shard.repair()).cursor.startswith(b"letters ")


async def test_an_empty_shard_is_walked_in_one_call(shard: Shard) -> None:
    """And gets its group."""
    assert await shard.repair() == Repaired(b"", remade=True)


async def test_a_shard_that_a_failover_set_back_to_an_earlier_layout_gets_the_callers(
    shard: Shard, look: Look, new_shard: Callable[..., Shard]
) -> None:
    """Else it would let in for ever who has not heard of a growth."""
    await shard.add(several(1))
    shard.layout.epoch = 2
    await shard.repair()
    with pytest.raises(LayoutMismatch, match="layout epoch 2"):
        await new_shard(now_us=shard.now_us).take("w", 1)


async def test_a_shard_that_changes_under_the_walk_ends_clean(shard: Shard, look: Look) -> None:
    """Letters are taken, settled and captured between the parts."""
    await shard.add(several(900))
    cursor, step = b"", 0
    while True:
        taken = (await shard.take("w", 100)).letters
        verb = (Verb.RESOLVE, Verb.RETRY, Verb.PARK)[step % 3]
        await shard.settle("w", [Outcome(x.id, x.lease.token, verb) for x in taken[:60] if x.lease])
        await shard.add(several(50, f"{step}-"))
        part = await shard.repair(cursor)
        assert (part.orphaned, part.doubled, part.rows_removed) == ([], [], 0)
        step += 1
        if not (cursor := part.cursor) and step > 8:
            break
    assert look.totals["captured"] == 900 + 50 * step
