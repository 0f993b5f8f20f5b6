"""expire: parked letters end when retention has passed since they were parked; nothing else does."""

import pytest

from tests.support.look import Look, several
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000
DAY_MS = 86_400_000


async def parked(shard: Shard, count: int) -> list[str]:
    """Letters parked at NOW_MS."""
    await shard.add(several(count, fingerprint="f"))
    taken = (await shard.take("w", count)).letters
    outcomes = [Outcome(x.id, x.lease.token, Verb.PARK, failed=True, history=b"h") for x in taken if x.lease]
    await shard.settle("w", outcomes)
    return [x.id for x in taken]


async def test_retention_counts_from_parked_at(shard: Shard, look: Look) -> None:
    """Not from the capture, which may be long ago; not a ms too early."""
    first = await parked(shard, 2)
    shard.now_us = TOKEN + DAY_MS * 1000
    second = await parked(shard, 1) if await shard.add([]) == [] else []
    shard.now_us = TOKEN + (DAY_MS - 1) * 1000
    assert await shard.expire(DAY_MS) == []
    shard.now_us = TOKEN + DAY_MS * 1000
    assert await shard.expire(DAY_MS) == first
    assert look.letters == second == list(look.parked)
    assert list(look.state) == second == list(look.history)
    assert look.totals["expired"] == 2


async def test_an_expired_letter_leaves_nothing_behind(shard: Shard, look: Look) -> None:
    """Entry, rows and error group go; the total counts it."""
    ids = await parked(shard, 3)
    assert await shard.expire(0) == ids
    assert (look.letters, look.parked, look.state, look.history, look.groups) == ([], {}, {}, {}, {})
    assert look.totals == {"captured": 3, "parked": 3, "expired": 3}


async def test_no_other_letter_expires(shard: Shard, look: Look) -> None:
    """Waiting, leased, scheduled, suspect and held letters are kept, however old they are."""
    await shard.add(several(4))
    taken = (await shard.take("w", 4)).letters
    await shard.settle("w", [Outcome(x.id, TOKEN, Verb.RETRY, 5_000) for x in taken[:2]])
    await shard.hold([Seen(taken[0].id, LetterState.SCHEDULED, NOW_MS + 5_000)])
    look.age(60_000, [taken[2].id])
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    await shard.add(several(1, "waiting"))
    shard.now_us = TOKEN + 10_000 * DAY_MS * 1000
    assert await shard.expire(0) == []
    assert len(look.letters) == 5


async def test_many_expire_a_hundred_a_call(shard: Shard, look: Look) -> None:
    """Bounded; called again while it gives a hundred."""
    ids = await parked(shard, 250)
    counts = [len(await shard.expire(0)) for _ in range(4)]
    assert counts == [100, 100, 50, 0] and look.letters == []
    assert look.totals["expired"] == len(ids)


@pytest.mark.parametrize("stronger", ["schedule", "suspects", "held"])
async def test_a_letter_that_stands_in_a_stronger_place_does_not_expire(
    stronger: str, shard: Shard, look: Look
) -> None:
    """A redrive that died between its writes: the letter is on its way back, its parked row goes."""
    (id,) = await parked(shard, 1)
    look.client.zadd(look.key(stronger), {id.removeprefix("0-"): NOW_MS})
    assert await shard.expire(0) == []
    assert look.where(id) == [stronger]


async def test_a_leased_letter_does_not_expire(shard: Shard, look: Look) -> None:
    """A replay has it; its old parked row goes."""
    (id,) = await parked(shard, 1)
    await shard.take("w", 1, ids=[id])
    look.client.zadd(look.key("parked"), {id.removeprefix("0-"): 1})
    assert await shard.expire(0) == []
    assert look.where(id) == ["leased"]


async def test_a_parked_row_without_a_letter_is_dropped_and_not_counted(shard: Shard, look: Look) -> None:
    """A stranger deleted the entry: lost externally, not expired."""
    (id,) = await parked(shard, 1)
    look.client.xdel(look.key("letters"), id.removeprefix("0-"))
    assert await shard.expire(0) == []
    assert look.parked == {} and "expired" not in look.totals
    await shard.repair()
    assert look.totals["lost_externally"] == 1


async def test_an_empty_shard_has_nothing_to_expire(shard: Shard, look: Look) -> None:
    """And nothing is made."""
    assert await shard.expire(0) == []
    assert look.snapshot() == {}


@pytest.mark.parametrize("retention", ["", "x"])
async def test_a_retention_that_is_no_number_expires_nothing(retention: str, shard: Shard, look: Look) -> None:
    """An error, before the first write."""
    await parked(shard, 1)
    before = look.snapshot()
    with pytest.raises(Exception, match="arithmetic"):
        await shard.call("expire", [retention])
    assert look.snapshot() == before
