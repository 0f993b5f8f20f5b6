"""verify: each kind of broken invariant is found, wherever it stands, and nothing is written."""

from collections.abc import Callable

import pytest

from tests.support.clean import assert_clean, verified
from tests.support.look import Look, several
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.browse import verify
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000
pytestmark = pytest.mark.unclean("broken on purpose")


@pytest.fixture
async def ids(shard: Shard) -> list[str]:
    """leased, scheduled, parked, waiting."""
    ids = [str(id) for id in await shard.add(several(3))]
    await shard.take("w", 3)
    await shard.settle("w", [Outcome(ids[1], TOKEN, Verb.RETRY, 9_000), Outcome(ids[2], TOKEN, Verb.PARK)])
    ids += [str(id) for id in await shard.add(several(1, "waiting"))]
    await assert_clean(shard)
    return ids


def short(id: str) -> str:
    return id.removeprefix("0-")


type Break = Callable[[Look, list[str]], object]
BREAKS: dict[str, tuple[Break, Callable[[list[str]], list[tuple[str, str, str]]]]] = {
    "I1: in no place, by XACK": (
        lambda look, ids: look.client.xack(look.key("letters"), "workers", short(ids[0])),
        lambda ids: [("orphan", ids[0], "")],
    ),
    "I1: in no place, by a lost index": (
        lambda look, ids: look.lose("parked"),
        lambda ids: [("orphan", ids[2], "")],
    ),
    "I1: in no place, by a lost group": (
        lambda look, ids: look.client.xgroup_destroy(look.key("letters"), "workers"),
        lambda ids: [("orphan", ids[0], "")],
    ),
    "I1: leased and scheduled": (
        lambda look, ids: look.client.zadd(look.key("schedule"), {short(ids[0]): 1}),
        lambda ids: [("twice", ids[0], "leased,scheduled")],
    ),
    "I1: scheduled and parked": (
        lambda look, ids: look.client.zadd(look.key("parked"), {short(ids[1]): 1}),
        lambda ids: [("twice", ids[1], "scheduled,parked")],
    ),
    "I1: in three places": (
        lambda look, ids: [look.client.zadd(look.key(name), {short(ids[1]): 1}) for name in ("suspects", "held")],
        lambda ids: [("twice", ids[1], "suspect,scheduled,held")],
    ),
    "I1: scheduled ahead of the mark": (
        lambda look, ids: look.client.zadd(look.key("schedule"), {short(ids[3]): 1}),
        lambda ids: [("ahead", ids[3], "scheduled")],
    ),
    "I2: a row of the schedule": (
        lambda look, ids: look.client.zadd(look.key("schedule"), {"1-1": 1}),
        lambda ids: [("row", "0-1-1", "scheduled")],
    ),
    "I2: a row of state": (
        lambda look, ids: look.client.hset(look.key("state"), "1-1", "x"),
        lambda ids: [("row", "0-1-1", "state")],
    ),
    "I2: a row of history": (
        lambda look, ids: look.client.hset(look.key("history"), "no id", "x"),
        lambda ids: [("row", "0-no id", "history")],
    ),
    "I3: a token nobody drew": (
        lambda look, ids: look.lease_as_stranger(ids[0], "w", TOKEN * 2),
        lambda ids: [("token", ids[0], str(TOKEN * 2))],
    ),
}


@pytest.mark.parametrize("what", BREAKS)
async def test_each_kind_of_violation_is_found(what: str, shard: Shard, look: Look, ids: list[str]) -> None:
    """Kind, letter, and where it is recorded."""
    stroke, expected = BREAKS[what]
    stroke(look, ids)
    before = look.snapshot()
    assert (await verified(shard)).violations == expected(ids)
    assert look.snapshot() == before
    with pytest.raises(AssertionError):
        await assert_clean(shard)


async def test_a_lease_without_its_letter_is_found(shard: Shard, look: Look, ids: list[str]) -> None:
    """I2 holds for the pending list, too."""
    look.client.xdel(look.key("letters"), short(ids[0]))
    found = await verified(shard)
    assert found.violations == [("row", ids[0], "leased")] and found.drift == 1


@pytest.mark.parametrize(
    ("total", "by", "drift"), [("captured", 1, 1), ("captured", -1, -1), ("resolved", 1, -1), ("expired", -1, 1)]
)
async def test_books_that_are_not_even_are_found(
    total: str, by: int, drift: int, shard: Shard, look: Look, ids: list[str]
) -> None:
    """I4: captured = resolved + discarded + expired + lost externally + still there."""
    look.client.hincrby(look.key("meta"), total, by)
    found = await verified(shard)
    assert (found.violations, found.drift, found.waiting) == ([], drift, 1)
    assert len(ids) == 4


async def test_a_letter_that_vanished_is_missed(shard: Shard, look: Look, ids: list[str]) -> None:
    """The waiting one was in no index: only the books know of it."""
    look.client.xdel(look.key("letters"), short(ids[3]))
    with pytest.raises(AssertionError, match="lost"):
        await assert_clean(shard)


async def test_strangers_letters_that_wait_are_no_violation(shard: Shard, look: Look, ids: list[str]) -> None:
    """They are booked when the mark passes them."""
    look.foreign({"payload": "x"})
    assert (await verified(shard)).drift == -1
    await assert_clean(shard)
    assert len(ids) == 4


async def test_meta_that_was_lost_makes_no_lease_a_violation(shard: Shard, look: Look, ids: list[str]) -> None:
    """Tokens are times: those that were drawn before are below the next."""
    look.lose("meta")
    assert (await verified(shard)).violations == []
    assert len(ids) == 4


async def test_a_large_shard_is_checked_in_parts(shard: Shard, look: Look) -> None:
    """500 a call; a violation in each part is found."""
    for part in range(3):
        await shard.add(several(1000, f"{part}-"))
        await shard.take("w", 1000)
    await shard.take("w", 1)
    every = look.letters[::500]
    look.client.xack(look.key("letters"), "workers", *map(short, every))
    found, cursor, parts = [], b"", 0
    while True:
        part_found = await verify(shard, cursor)
        found += part_found.violations
        parts += 1
        if not (cursor := part_found.cursor):
            break
    assert [id for _, id, _ in found] == every and parts >= 6


async def test_an_empty_shard_is_clean(shard: Shard, look: Look) -> None:
    """And nothing is made."""
    assert await verify(shard) == (b"", [], 0, 0)
    assert look.snapshot() == {}
