"""take: what it leases, in which shares, and what it says about the rest."""

import pytest

from tests.support.look import Look, new, several
from tests.support.loops import BOTH_LOOPS
from uno.event_bus.dead_letter.letter import Counters, Letter, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Taken, Verdict

NOW_MS = 1_800_000_000_000


async def due_letters(shard: Shard, count: int, delay_ms: int = 0) -> list[str]:
    """Letters that failed once and are due after `delay_ms`."""
    await shard.add(several(count, "due"), window_ms=0)
    taken = (await shard.take("w", count)).letters
    assert len(taken) == count
    await shard.settle("w", [Outcome(x.id, token(x), Verb.RETRY, delay_ms, failed=True) for x in taken])
    return [x.id for x in taken]


def token(letter: Letter) -> int:
    assert letter.lease is not None
    return letter.lease.token


def ids(taken: Taken) -> list[str]:
    return [letter.id for letter in taken.letters]


@BOTH_LOOPS
async def test_new_letters_are_leased_in_the_order_of_capture(shard: Shard, look: Look) -> None:
    """Mark, group, lease and token: all that a take of new letters writes."""
    added = await shard.add(several(3))
    taken = await shard.take("w", 2)
    assert ids(taken) == added[:2]
    assert look.leases == dict.fromkeys(added[:2], ("w", NOW_MS * 1000))
    assert look.mark == look.group_position == added[1]
    assert look.meta["token"] == str(NOW_MS * 1000)
    assert (taken.more, taken.mark, taken.now_ms) == (True, str(added[1]).removeprefix("0-").encode(), NOW_MS)
    assert (look.schedule, look.state, look.history) == ({}, {}, {})


async def test_a_take_from_an_empty_shard_makes_group_and_meta_and_nothing_else(shard: Shard, look: Look) -> None:
    """The group is there for the next one; `remade` asks for a repair."""
    taken = await shard.take("w", 10)
    assert (taken.letters, taken.more, taken.remade, taken.mark) == ([], False, True, b"0-0")
    assert (taken.next_due_ms, taken.suspect_due_ms, taken.suspect) == (None, None, False)
    meta = {"mark": "0-0", "format": "1", "protocol": "1", "epoch": "1", "clock": str(NOW_MS * 1000), "lead": "0"}
    assert look.meta == meta
    assert not (await shard.take("w", 10)).remade


async def test_a_letter_is_leased_once(shard: Shard) -> None:
    """A second take does not give what the first one gave."""
    added = await shard.add(several(2))
    assert ids(await shard.take("w1", 5)) == added
    assert ids(await shard.take("w2", 5)) == []


async def test_a_retried_letter_comes_when_it_is_due_with_its_counters(shard: Shard, look: Look) -> None:
    """Not a ms earlier; then it leaves the schedule and brings counters and history."""
    (id,) = await shard.add([new()])
    (letter,) = (await shard.take("w", 1)).letters
    outcome = Outcome(letter.id, token(letter), Verb.RETRY, 5_000, failed=True, reason="boom", history=b"past")
    assert await shard.settle("w", [outcome]) == [Verdict.OK]
    assert look.schedule == {id: NOW_MS + 5_000}
    shard.now_us = (NOW_MS + 4_999) * 1000
    early = await shard.take("w", 5)
    assert (early.letters, early.next_due_ms, early.more) == ([], NOW_MS + 5_000, False)
    shard.now_us = (NOW_MS + 5_000) * 1000
    (again,) = (await shard.take("w", 5)).letters
    assert (again.id, again.counters, again.packed_history) == (id, Counters(failures=1, reason="boom"), b"past")
    assert again.due_ms == NOW_MS + 5_000
    assert look.where(again.id) == ["leased"]


async def test_a_letter_captured_with_a_delay_waits_in_the_schedule(shard: Shard, look: Look) -> None:
    """The intake passes it, so that those behind it are not held up."""
    slow, quick = await shard.add([new("slow", delay_ms=60_000), new("quick")])
    taken = await shard.take("w", 5)
    assert ids(taken) == [quick]
    assert look.schedule == {slow: NOW_MS + 60_000} and look.mark == quick
    assert taken.next_due_ms == NOW_MS + 60_000
    shard.now_us = (NOW_MS + 60_000) * 1000
    assert ids(await shard.take("w", 5)) == [slow]


@pytest.mark.parametrize(("count", "for_new"), [(4, 1), (5, 2), (8, 2), (10, 3), (100, 25)])
async def test_a_quarter_of_the_places_is_kept_for_new_letters(count: int, for_new: int, shard: Shard) -> None:
    """Rounded up, while there are more due letters than places."""
    due = await due_letters(shard, count + 1)
    fresh = await shard.add(several(count))
    taken = await shard.take("w", count)
    assert [id for id in ids(taken) if id not in due] == fresh[:for_new]
    assert len(taken.letters) == count and taken.more


@pytest.mark.parametrize(("due", "fresh"), [(0, 12), (1, 12), (12, 0), (12, 1), (3, 3)])
async def test_places_that_one_kind_does_not_use_go_to_the_other(due: int, fresh: int, shard: Shard) -> None:
    """A take is as full as the letters there are."""
    if due:
        await due_letters(shard, due)
    await shard.add(several(fresh))
    assert len((await shard.take("w", 8)).letters) == min(8, due + fresh)


async def test_more_says_whether_to_take_again_at_once(shard: Shard) -> None:
    """True while something new or due is left over; then False."""
    await due_letters(shard, 5)
    assert (await shard.take("w", 4)).more
    assert not (await shard.take("w", 4)).more
    await shard.add(several(15))
    assert (await shard.take("w", 12)).more
    assert not (await shard.take("w", 12)).more


async def test_a_thousand_delayed_letters_do_not_hide_the_new_one_behind_them(shard: Shard, look: Look) -> None:
    """500 entries a call, and `more` until the last: the taker never blocks behind delayed letters."""
    await shard.add(several(1000, delay_ms=60_000))
    (last,) = await shard.add([new("ready")])
    for passed in (500, 1000):
        taken = await shard.take("w", 10)
        assert (taken.letters, taken.more, len(look.schedule)) == ([], True, passed)
        assert look.group_position == look.mark
    taken = await shard.take("w", 10)
    assert (ids(taken), taken.more) == ([last], False)


async def test_a_take_of_many_walks_as_many_delayed_ones(shard: Shard, look: Look) -> None:
    """The walk is bounded by max(count, 500)."""
    await shard.add(several(900, delay_ms=60_000))
    await shard.take("w", 800)
    assert len(look.schedule) == 800


async def test_large_bodies_fill_a_take_before_its_count(shard: Shard) -> None:
    """4 MiB of bodies a call, and at most ten entries more."""
    for _ in range(3):
        await shard.add(several(10, payload=b"x" * 700_000), window_ms=0)
    taken = await shard.take("w", 100)
    assert len(taken.letters) == 10 and taken.more
    sizes = [len((await shard.take("w", 100)).letters) for _ in range(3)]
    assert sizes == [10, 10, 0]


async def test_large_bodies_of_due_letters_are_bounded_too(shard: Shard) -> None:
    """The budget is reached, and the rest stays due."""
    ids_due = []
    await shard.add(several(20, payload=b"x" * 700_000), window_ms=0)
    while taken := (await shard.take("w", 20)).letters:
        await shard.settle("w", [Outcome(x.id, token(x), Verb.RETRY, 1_000) for x in taken])
        ids_due += [x.id for x in taken]
    shard.now_us = (NOW_MS + 1_000) * 1000
    first = await shard.take("w", 20)
    assert len(first.letters) == 6 and first.more
    assert len(ids_due) == 20


async def test_large_new_letters_do_not_starve_the_due_ones(shard: Shard) -> None:
    """However many bytes the new ones have, some of those due come with them."""
    due = await due_letters(shard, 10)
    for _ in range(2):
        await shard.add(several(10, payload=b"x" * 700_000), window_ms=0)
    taken = ids(await shard.take("w", 20))
    assert len(taken) == 20 and set(due) < set(taken)


async def test_a_take_of_nothing_leases_nothing(shard: Shard, look: Look) -> None:
    """Count 0: a worker that is full still learns what is due."""
    due = await due_letters(shard, 2)
    await shard.add(several(2))
    taken = await shard.take("w", 0)
    assert taken.letters == [] and look.leases == {}
    assert taken.next_due_ms == NOW_MS and sorted(look.schedule) == sorted(due)


async def test_due_rows_without_a_letter_are_dropped(shard: Shard, look: Look) -> None:
    """A stranger deleted the entry: no empty letter reaches a handler, and its rows go."""
    gone, kept = await due_letters(shard, 2)
    look.client.xdel(look.key("letters"), gone.removeprefix("0-"))
    assert ids(await shard.take("w", 5)) == [kept]
    assert look.schedule == {} and list(look.state) == [kept]
    assert look.totals["lost_externally"] == 1


async def test_a_due_letter_that_is_leased_already_is_not_leased_again(shard: Shard, look: Look) -> None:
    """A script died between its writes: the lease counts, the row goes."""
    (id,) = await shard.add([new()])
    await shard.take("w1", 1)
    look.client.zadd(look.key("schedule"), {str(id).removeprefix("0-"): NOW_MS})
    before = look.leases
    assert ids(await shard.take("w2", 5)) == []
    assert look.leases == before and look.schedule == {}


async def test_taking_one_by_one_starves_neither_kind(shard: Shard) -> None:
    """Of a single place the new letters' quarter is drawn by the token, which grows by one with each take here."""
    await due_letters(shard, 20)
    new_ids = await shard.add(several(20, "new"), window_ms=0)
    taken = [ids(await shard.take("w", 1))[0] for _ in range(16)]
    assert sum(id in new_ids for id in taken) == 4


async def test_a_letter_says_since_when_it_was_due(shard: Shard, look: Look) -> None:
    """A new one by its delay, a retried one by the schedule, a suspect by its own index, a stranger's by its id."""
    await shard.add([new("new")])
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.due_ms == NOW_MS
    look.age(60_000)
    shard.now_us = (NOW_MS + 60_000) * 1000
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    await shard.add([new("late", delay_ms=1_000)])
    await shard.take("w", 1)
    shard.now_us = (NOW_MS + 90_000) * 1000
    (suspect,) = (await shard.take("w", 0, alone=True)).letters
    assert (suspect.id, suspect.due_ms) == (letter.id, NOW_MS + 60_000)
    (late,) = (await shard.take("w", 1)).letters
    assert (late.event_id, late.due_ms) == ("late", NOW_MS + 61_000)
    foreign = look.foreign({"payload": "x"})
    (letter,) = (await shard.take("w", 1)).letters
    assert (letter.id, letter.due_ms) == (foreign, int(foreign.split("-")[1]))
