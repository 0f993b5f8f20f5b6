"""take by id (`replay`), and suspects, which run alone."""

import pytest

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Reclaimed, Seen, Verdict

NOW_MS = 1_800_000_000_000


async def in_states(shard: Shard, look: Look) -> dict[str, str]:
    """One letter in every state; name of the state → id."""
    names = ["scheduled", "parked", "leased", "held", "gone", "suspect"]
    ids = dict(zip(names, map(str, await shard.add(several(6))), strict=True))
    crashed = (await shard.take("dead", 6)).letters
    token = crashed[0].lease.token if crashed[0].lease else 0
    verbs = {"scheduled": Verb.RETRY, "parked": Verb.PARK, "held": Verb.RETRY, "gone": Verb.RESOLVE}
    outcomes = [Outcome(ids[name], token, verb, 60_000) for name, verb in verbs.items()]
    assert set(await shard.settle("dead", outcomes)) == {Verdict.OK}
    await shard.hold([Seen(ids["held"], LetterState.SCHEDULED, NOW_MS + 60_000)])
    look.age(60_000, [ids["suspect"]])
    assert (await shard.reclaim(lease_ms=30_000, max_crashes=3)).suspects == [ids["suspect"]]
    (ids["waiting"],) = map(str, await shard.add([new("waiting", delay_ms=60_000)]))
    return ids


@pytest.mark.parametrize("state", ["scheduled", "parked", "waiting"])
async def test_a_named_letter_is_leased_due_or_not(state: str, shard: Shard, look: Look) -> None:
    """Scheduled, parked and waiting letters are: the intake is run past a waiting one first."""
    ids = await in_states(shard, look)
    taken = await shard.take("w", 5, ids=[ids[state]])
    assert [letter.id for letter in taken.letters] == [ids[state]]
    assert look.where(ids[state]) == ["leased"]
    assert look.leases[ids[state]][0] == "w"
    assert taken.mark.decode() == look.mark.removeprefix("0-") == ids["waiting"].removeprefix("0-")


@pytest.mark.parametrize("state", ["leased", "held", "gone", "suspect"])
async def test_a_named_letter_that_is_not_to_be_had_is_left(state: str, shard: Shard, look: Look) -> None:
    """A lease is another's, a hold is an operator's, a suspect runs alone: each stays where it is."""
    ids = await in_states(shard, look)
    before = look.where(ids[state])
    assert (await shard.take("w", 5, ids=[ids[state]])).letters == []
    assert look.where(ids[state]) == before


async def test_a_letter_that_is_named_twice_comes_once(shard: Shard) -> None:
    """One letter, one lease, one handler."""
    (id,) = await shard.add([new()])
    taken = await shard.take("w", 5, ids=[str(id), str(id)])
    assert [letter.id for letter in taken.letters] == [id]


async def test_named_letters_beyond_the_count_are_left(shard: Shard, look: Look) -> None:
    """`more` says so."""
    ids = [str(id) for id in await shard.add(several(3))]
    taken = await shard.take("w", 2, ids=ids)
    assert [letter.id for letter in taken.letters] == ids[:2] and taken.more
    assert list(look.schedule) == ids[2:]


async def suspects(shard: Shard, look: Look, count: int) -> Reclaimed:
    await shard.add(several(count))
    await shard.take("dead", count)
    look.age(60_000)
    return await shard.reclaim(lease_ms=30_000, max_crashes=3)


async def test_a_suspect_comes_alone_and_before_all_else(shard: Shard, look: Look) -> None:
    """One letter, marked as suspect; new ones and other suspects wait until it is settled."""
    found = await suspects(shard, look, 2)
    await shard.add(several(3, "new"))
    taken = await shard.take("w", 10, alone=True)
    assert taken.suspect and len(taken.letters) == 1
    (letter,) = taken.letters
    assert letter.id in found.suspects and letter.counters.crashes == 1
    assert look.where(letter.id) == ["leased"] and len(look.suspects) == 1


async def test_a_worker_that_holds_something_is_given_no_suspect(shard: Shard, look: Look) -> None:
    """It learns since when one is due, so that it can empty itself."""
    await suspects(shard, look, 1)
    (fresh,) = await shard.add([new("new")])
    taken = await shard.take("w", 10)
    assert [letter.id for letter in taken.letters] == [fresh] and not taken.suspect
    assert taken.suspect_due_ms == NOW_MS
    assert len(look.suspects) == 1


async def test_a_suspect_that_is_not_due_stays(shard: Shard, look: Look) -> None:
    """An operator put it off: new letters come meanwhile."""
    (id,) = (await suspects(shard, look, 1)).suspects
    await shard.reschedule([Seen(id, LetterState.SUSPECT, NOW_MS)], delay_ms=5_000)
    (fresh,) = await shard.add([new("new")])
    taken = await shard.take("w", 10, alone=True)
    assert [letter.id for letter in taken.letters] == [fresh]
    assert look.suspects == {id: NOW_MS + 5_000} and taken.suspect_due_ms == NOW_MS + 5_000


@pytest.mark.parametrize("stroke", ["deleted", "leased"])
async def test_a_suspect_row_without_a_letter_to_lease_stops_nobody(stroke: str, shard: Shard, look: Look) -> None:
    """The row goes, and the worker is told to take again: there may be more."""
    (id,) = (await suspects(shard, look, 1)).suspects
    if stroke == "deleted":
        look.client.xdel(look.key("letters"), id.removeprefix("0-"))
    else:
        look.lease_as_stranger(id)
    (fresh,) = await shard.add([new("new")])
    taken = await shard.take("w", 10, alone=True)
    assert taken.letters == [] and taken.more and not taken.suspect
    assert look.suspects == {}
    assert [letter.id for letter in (await shard.take("w", 10, alone=True)).letters] == [fresh]


async def test_a_suspect_that_is_resolved_is_gone(shard: Shard, look: Look) -> None:
    """And one that is retried goes among the others again: it has shown itself harmless."""
    await suspects(shard, look, 2)
    for verb in (Verb.RESOLVE, Verb.RETRY):
        (letter,) = (await shard.take("w", 1, alone=True)).letters
        assert letter.lease is not None
        await shard.settle("w", [Outcome(letter.id, letter.lease.token, verb, 1_000)])
    assert len(look.letters) == 1 and list(look.schedule) == look.letters and look.suspects == {}
