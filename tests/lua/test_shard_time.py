"""The shard's time: letters are due by it, and a server's clock that is set back does not take it along."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen

NOW_US = 1_800_000_000_000_000
HOUR_MS = 3_600_000
NUMBERS = itertools.count()


def set_clock(shard: Shard, ms: int) -> None:
    """The server's clock, ms from the tests' time."""
    shard.now_us = NOW_US + ms * 1000


def forget_time(look: Look) -> None:
    look.client.hdel(look.key("meta"), "clock", "lead")


async def time_of(shard: Shard) -> int:
    """The shard's time, ms from the tests'."""
    stats = await browse.stats(shard)
    return int(stats["now"]) + int(stats["lead_ms"]) - NOW_US // 1000


async def retried(shard: Shard, delay_ms: int) -> str:
    """A letter that a handler failed on just now."""
    await shard.add([new()])
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.lease
    await shard.settle("w", [Outcome(letter.id, letter.lease.token, Verb.RETRY, delay_ms, failed=True)])
    return letter.id


async def captured(shard: Shard, delay_ms: int) -> str:
    (id,) = map(str, await shard.add([new(delay_ms=delay_ms)]))
    return id


async def rescheduled(shard: Shard, delay_ms: int) -> str:
    id = await captured(shard, 0)
    await shard.park([Seen(id, LetterState.WAITING, 0)], reason="test")
    await shard.reschedule([Seen(id, LetterState.PARKED, NOW_US // 1000 + HOUR_MS)], delay_ms=delay_ms)
    return id


async def taken(shard: Shard) -> None:
    assert (await shard.take("w", 1)).letters == []


async def reclaimed(shard: Shard) -> None:
    assert (await shard.reclaim(lease_ms=30_000, max_crashes=3)).suspects == []


@pytest.mark.parametrize("put_off", [retried, captured, rescheduled])
async def test_a_letter_put_off_before_the_clock_was_set_back_waits_no_longer(
    put_off: Callable[[Shard, int], Awaitable[str]], shard: Shard
) -> None:
    """An hour back: it is due after its own minute, not after an hour and a minute."""
    set_clock(shard, HOUR_MS)
    id = await put_off(shard, 60_000)
    set_clock(shard, 0)
    assert (await shard.take("w", 1)).letters == []
    set_clock(shard, 70_000)
    assert [letter.id for letter in (await shard.take("w", 1)).letters] == [id]


async def test_a_take_that_finds_nothing_notices_a_clock_that_was_set_back(shard: Shard) -> None:
    """Else the shard's time would stand until the clock is there again."""
    set_clock(shard, HOUR_MS)
    await captured(shard, 60_000)
    set_clock(shard, 0)
    await shard.take("w", 1)
    before = await time_of(shard)
    set_clock(shard, 8_000)
    assert await time_of(shard) - before == 7_000


@pytest.mark.parametrize("is_called", [taken, reclaimed])
async def test_a_step_back_after_quiet_minutes_is_noticed(
    is_called: Callable[[Shard], Awaitable[None]], shard: Shard
) -> None:
    """Calls that find nothing note how late it is: a letter put off by half an hour waits for what is left of that."""
    set_clock(shard, 0)
    id = await captured(shard, 30 * 60_000)
    await taken(shard)
    set_clock(shard, 29 * 60_000)
    await is_called(shard)
    set_clock(shard, 1_000)
    assert (await shard.take("w", 1)).letters == []
    set_clock(shard, 71_000)
    assert [letter.id for letter in (await shard.take("w", 1)).letters] == [id]


@pytest.mark.parametrize("is_called", [taken, reclaimed])
async def test_calls_that_find_nothing_write_the_time_every_five_seconds(
    is_called: Callable[[Shard], Awaitable[None]], shard: Shard, look: Look
) -> None:
    """No oftener: an idle worker makes many."""
    set_clock(shard, 0)
    await captured(shard, HOUR_MS)
    await taken(shard)
    written = []
    for ms in range(0, 16_000, 500):
        set_clock(shard, ms)
        await is_called(shard)
        written.append(int(look.meta["clock"]) - NOW_US)
    assert sorted(set(written)) == [0, 5_000_000, 10_000_000, 15_000_000]


async def test_a_lead_is_given_back(shard: Shard) -> None:
    """An eighth of the time that passes: an hour in eight; then the shard goes by the server's clock again."""
    set_clock(shard, HOUR_MS)
    await captured(shard, 0)
    set_clock(shard, 0)
    await shard.take("w", 0)
    leads = []
    for hour in range(10):
        set_clock(shard, hour * HOUR_MS)
        await shard.add([new(f"e{hour}")])
        leads.append(await time_of(shard) - hour * HOUR_MS)
    assert leads == [HOUR_MS * max(8 - hour, 0) // 8 for hour in range(10)]


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_a_clock_that_is_right_is_the_shards(is_forgotten: bool, shard: Shard, look: Look) -> None:
    """To the ms; also when what was known of the time is lost."""
    for ms in (0, 30, 5_000, HOUR_MS):
        set_clock(shard, ms)
        await shard.add([new(f"e{ms}")])
        if is_forgotten:
            forget_time(look)
        assert await time_of(shard) == ms


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(-HOUR_MS, HOUR_MS) | st.integers(0, 500), max_size=12))
async def test_it_never_goes_back_and_never_lags(steps: list[int], shard: Shard, look: Look) -> None:
    """By more than the tenth of a second after which it is written down; however the server's clock jumps."""
    forget_time(look)
    clock, latest = 0, -HOUR_MS
    for number, step in enumerate(steps):
        clock += step
        set_clock(shard, clock)
        await shard.add([new(f"e{next(NUMBERS)}")])
        now = await time_of(shard)
        assert now >= max(clock, latest - 100)
        assert now >= latest + step * 7 // 8 - 100 or step < 0 or not number
        latest = now


async def test_retention_goes_by_the_servers_clock(shard: Shard) -> None:
    """What ends letters may come late, never early: an hour ahead and back has not aged them."""
    (id,) = map(str, await shard.add([new("parked")]))
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.lease
    await shard.settle("w", [Outcome(id, letter.lease.token, Verb.PARK, failed=True)])
    set_clock(shard, HOUR_MS)
    await shard.take("w", 0)
    await captured(shard, 0)
    set_clock(shard, 1000)
    assert await time_of(shard) >= HOUR_MS
    assert await shard.expire(HOUR_MS) == []


async def test_a_lease_of_before_the_clock_was_set_back_runs_out_in_time(shard: Shard, look: Look) -> None:
    """It begins anew, once, when a walk of `reclaim` finds it; owner and token stay, and others keep their age."""
    set_clock(shard, HOUR_MS)
    await shard.add(several(3))
    dead = [letter.id for letter in (await shard.take("dead", 2)).letters]
    (alive,) = [letter.id for letter in (await shard.take("alive", 1)).letters]
    look.age(5_000, [alive])
    look.lease_in_the_future(HOUR_MS, dead)
    leases = look.leases
    set_clock(shard, 0)
    found = await shard.reclaim(lease_ms=30_000, max_crashes=3)
    assert (found.suspects, found.lead_ms) == ([], HOUR_MS)
    assert look.leases == leases
    begun = look.begun_ms_ago
    assert all(0 <= begun[id] < 5_000 for id in dead) and begun[alive] >= 5_000
    await asyncio.sleep(0.05)
    found = await shard.reclaim(lease_ms=20, max_crashes=3)
    assert sorted(found.suspects) == sorted([*dead, alive])
