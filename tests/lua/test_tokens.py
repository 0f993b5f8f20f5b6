"""Tokens: the number that makes a lease unique only grows, whatever is done to group, meta and clock."""

from collections.abc import Callable

import pytest

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Verdict

NOW_US = 1_800_000_000_000_000


async def taken_tokens(shard: Shard, count: int = 1) -> list[tuple[str, int]]:
    letters = (await shard.take("w", count)).letters
    return [(letter.id, letter.lease.token) for letter in letters if letter.lease]


async def test_a_call_draws_one_token_for_all_its_letters(shard: Shard, look: Look) -> None:
    """It is the delivery count of every letter that the call leased."""
    await shard.add(several(3))
    assert {token for _, token in await taken_tokens(shard, 3)} == {NOW_US}
    assert {token for _, token in look.leases.values()} == {NOW_US}


async def test_a_token_is_one_more_while_the_clock_stands(shard: Shard) -> None:
    """Also when the clock goes back: the last token counts, then the time."""
    shard.now_us = NOW_US - 10_000_000
    await shard.add(several(4))
    shard.now_us = NOW_US
    assert [(await taken_tokens(shard))[0][1] for _ in range(2)] == [NOW_US, NOW_US + 1]
    shard.now_us = NOW_US - 10_000_000
    assert (await taken_tokens(shard))[0][1] == NOW_US + 2
    shard.now_us = NOW_US + 10_000_000
    assert (await taken_tokens(shard))[0][1] >= NOW_US + 10_000_000


@pytest.mark.parametrize("token", [9_007_199_254_740_991, 1_800_000_000_000_001, 10**15 - 1, 10**15])
async def test_a_token_of_sixteen_digits_is_exact(token: int, shard: Shard, look: Look) -> None:
    """In meta, pending list, reply and comparison: Lua prints such numbers as 1.8e+15 if it is let."""
    shard.now_us = token
    await shard.add(several(1))
    ((id, drawn),) = await taken_tokens(shard)
    assert drawn == token == look.leases[id][1] == int(look.meta["token"])
    assert await shard.settle("w", [Outcome(id, token - 1, Verb.RESOLVE)]) == [Verdict.LOST]
    assert (await shard.extend("w", [(id, token)])).lost == []
    assert (await shard.extend("w", [])).forgotten == [(id, token)]
    assert await shard.settle("w", [Outcome(id, token, Verb.RESOLVE)]) == [Verdict.OK]


def destroy(look: Look) -> None:
    look.client.xgroup_destroy(look.key("letters"), "workers")


def recreate(look: Look) -> None:
    destroy(look)
    look.client.xgroup_create(look.key("letters"), "workers", "0")


def rewind(look: Look) -> None:
    look.client.xgroup_setid(look.key("letters"), "workers", "0")


def forward(look: Look) -> None:
    look.client.xgroup_setid(look.key("letters"), "workers", "$")


def both(stroke: Callable[[Look], None], look: Look) -> None:
    stroke(look)
    look.lose("meta")


STROKES = {
    "destroyed": destroy,
    "recreated": recreate,
    "rewound": rewind,
    "set forward": forward,
    "destroyed, meta lost": lambda look: both(destroy, look),
    "recreated, meta lost": lambda look: both(recreate, look),
    "rewound, meta lost": lambda look: both(rewind, look),
    "meta lost": lambda look: look.lose("meta"),
    "state lost": lambda look: look.lose("state", "history"),
}


@pytest.mark.parametrize("stroke", STROKES)
async def test_no_token_comes_twice(stroke: str, shard: Shard, look: Look) -> None:
    """A group that is lost, recreated or moved gives no letter a lease that it had before, and loses none."""
    added = await shard.add(several(6))
    seen = await taken_tokens(shard, 2)
    await taken_tokens(shard, 1)
    STROKES[stroke](look)
    for _ in range(4):
        assert shard.now_us is not None
        shard.now_us += 1_000_000  # what is lost with meta, time makes up for
        cursor = b""
        while cursor := (await shard.repair(cursor)).cursor:
            pass
        look.age(60_000)
        await shard.reclaim(lease_ms=30_000, max_crashes=99)
        seen += await taken_tokens(shard, 3)
        while (suspect := (await shard.take("w", 1, alone=True))).suspect:
            seen += [(letter.id, letter.lease.token) for letter in suspect.letters if letter.lease]
    assert len(seen) == len(set(seen))
    assert {id for id, _ in seen} == set(added)


@pytest.mark.parametrize("stroke", ["destroyed", "recreated", "destroyed, meta lost", "recreated, meta lost"])
async def test_an_old_lease_settles_nothing_after_the_group_was_lost(stroke: str, shard: Shard, look: Look) -> None:
    """The worker that held it learns LOST, also when the letter has a new lease by then."""
    await shard.add(several(1))
    ((id, old),) = await taken_tokens(shard)
    STROKES[stroke](look)
    assert await shard.settle("w", [Outcome(id, old, Verb.RESOLVE)]) == [Verdict.LOST]
    shard.now_us = NOW_US + 1_000_000
    await shard.repair()
    ((again, token),) = await taken_tokens(shard)
    assert again == id and token != old
    assert await shard.settle("w", [Outcome(id, old, Verb.RESOLVE)]) == [Verdict.LOST]
    assert look.leases == {id: ("w", token)}


async def test_the_position_of_the_group_alone_is_believed(shard: Shard, look: Look) -> None:
    """Without `meta` the mark is where the group stands: nothing is delivered a second time."""
    added = await shard.add(several(4))
    await taken_tokens(shard, 2)
    look.lose("meta")
    assert [id for id, _ in await taken_tokens(shard, 4)] == added[2:]
    assert look.mark == added[3]


async def test_without_meta_and_group_repair_finds_the_letters(shard: Shard, look: Look) -> None:
    """The mark is the stream's last id then; every letter goes to the schedule."""
    added = await shard.add(several(4))
    await taken_tokens(shard, 2)
    destroy(look)
    look.lose("meta")
    assert await taken_tokens(shard, 4) == []
    assert sorted((await shard.repair()).orphaned) == sorted(map(str, added))
    assert sorted(look.schedule) == sorted(map(str, added))
    assert look.totals == {"captured": 4, "orphaned": 4}


async def test_a_token_is_not_repeated_when_a_failover_sets_shard_and_clock_back(shard: Shard, look: Look) -> None:
    """The process that held the later token tells it: neither `meta` nor the clock knows it any more."""
    [id] = await shard.add([new()])
    first = (await shard.take("w", 1)).letters[0].lease
    assert id is not None
    look.client.xack(look.key("letters"), "workers", id.removeprefix("0-"))
    look.client.hdel(look.key("meta"), "token")
    assert shard.now_us is not None and first is not None
    shard.now_us -= 60_000_000
    await shard.repair()
    again = (await shard.take("w", 1)).letters[0].lease
    assert again is not None and again.token > first.token
