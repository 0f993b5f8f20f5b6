"""reclaim: what ran out becomes a suspect, or is parked; what lives is left alone, wherever it stands."""

import pytest

from tests.support.look import Look, several
from tests.support.servers import Server
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Reclaimed, Seen, Verdict

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000


async def walk(shard: Shard, max_crashes: int = 3, lease_ms: int = 30_000) -> tuple[Reclaimed, int]:
    """One tick: reclaim to the end of the walk; what was found, and the calls it took."""
    cursor, suspects, parked, calls = b"0-0", [], [], 0
    while True:
        found = await shard.reclaim(cursor, lease_ms=lease_ms, max_crashes=max_crashes)
        suspects += found.suspects
        parked += found.parked
        calls += 1
        if found.cursor == b"0-0":
            return Reclaimed(found.cursor, suspects, parked), calls
        cursor = found.cursor


async def test_a_lease_that_ran_out_makes_a_suspect(shard: Shard, look: Look) -> None:
    """Crashes + 1, due now, out of the pending list; never leased anew."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.take("w", 1)
    look.age(30_000)
    assert await walk(shard) == (Reclaimed(b"0-0", [id], []), 1)
    assert look.where(id) == ["suspects"] and look.suspects == {id: NOW_MS}
    assert look.state == {id: [1, 0, 1, 0, 0, 0, "", "", 0]}
    assert look.totals == {"captured": 1, "crashed": 1}


async def test_a_lease_that_lives_is_left(shard: Shard, look: Look) -> None:
    """A ms short of its length, nothing changes."""
    await shard.add(several(1))
    await shard.take("w", 1)
    look.age(20_000)
    assert (await walk(shard))[0].suspects == []
    assert len(look.leases) == 1 and look.state == {}


async def test_a_dead_lease_behind_many_live_ones_is_found_in_one_walk(shard: Shard, look: Look) -> None:
    """The cursor is kept: 2,500 live leases with low ids hide nothing (P3)."""
    for part in range(3):
        await shard.add(several(1000, f"{part}-"))
        await shard.take("w", 1000)
    last = look.letters[-1]
    look.age(60_000, [last])
    found, calls = await walk(shard)
    assert found.suspects == [last] and 1 < calls <= 5
    assert len(look.leases) == 2_999


async def test_a_letter_that_crashes_again_and_again_is_parked_as_stalled(shard: Shard, look: Look) -> None:
    """At `max_crashes`, not before."""
    (id,) = map(str, await shard.add(several(1)))
    for crash in (1, 2, 3):
        (letter,) = (await shard.take("w", 1, alone=True)).letters
        assert letter.counters.crashes == crash - 1
        look.age(60_000)
        found, _ = await walk(shard)
        assert (found.suspects, found.parked) == (([id], []) if crash < 3 else ([], [id]))
    assert look.where(id) == ["parked"] and look.parked == {id: NOW_MS}
    assert look.state[id][:7] == [1, 0, 3, 0, 0, 0, "stalled"]
    assert look.totals == {"captured": 1, "crashed": 3, "parked": 1}


async def test_a_redrive_gives_a_new_budget_of_crashes(shard: Shard, look: Look) -> None:
    """Crashes before it stay counted, and do not park the letter at once."""
    (id,) = map(str, await shard.add(several(1)))
    for _ in range(2):
        await shard.take("w", 1, alone=True)
        look.age(60_000)
        await walk(shard, max_crashes=2)
    await shard.reschedule([Seen(id, LetterState.PARKED, NOW_MS)])
    assert look.state[id] == [1, 0, 2, 0, 1, 0, "stalled", "", 2]
    for place in ("suspects", "parked"):
        assert len((await shard.take("w", 1, alone=True)).letters) == 1
        look.age(60_000)
        await walk(shard, max_crashes=2)
        assert look.where(id) == [place]
    assert look.state[id][2] == 4


async def test_a_crash_is_not_a_failure(shard: Shard, look: Look) -> None:
    """The four counters are kept apart."""
    (id,) = map(str, await shard.add(several(1)))
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.lease is not None
    await shard.settle("w", [Outcome(id, letter.lease.token, Verb.RETRY, failed=True, reason="boom")])
    await shard.take("w", 1)
    look.age(60_000)
    await walk(shard)
    (letter,) = (await shard.take("w", 1, alone=True)).letters
    assert letter.counters[:4] == (1, 1, 0, 0) and letter.counters.reason == "boom"


async def test_entries_that_a_stranger_deleted_are_let_go(shard: Shard, look: Look) -> None:
    """Redis 7 drops such leases itself, 6.2 answers their ids: nothing stays either way, nobody is a suspect."""
    ids = [str(id) for id in await shard.add(several(4))]
    for letter in (await shard.take("w", 2)).letters:
        assert letter.lease is not None
        await shard.settle("w", [Outcome(letter.id, letter.lease.token, Verb.RETRY, history=b"h")])
    await shard.take("w", 4)
    assert sorted(look.leases) == ids
    look.client.xdel(look.key("letters"), *[id.removeprefix("0-") for id in ids[:3]])
    look.age(60_000)
    assert (await walk(shard))[0] == Reclaimed(b"0-0", ids[3:], [])
    assert look.leases == {} and list(look.suspects) == ids[3:]
    await shard.repair()
    assert list(look.state) == ids[3:] and look.history == {}
    assert look.totals == {"captured": 4, "retried": 2, "crashed": 1, "lost_externally": 3}


async def test_rows_of_leases_that_the_server_dropped_go_at_once(shard: Shard, look: Look, server: Server) -> None:
    """Redis 7 names them in XAUTOCLAIM's third answer; on 6.2 repair does it."""
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 does not name them")
    (id,) = map(str, await shard.add(several(1)))
    (letter,) = (await shard.take("w", 1)).letters
    assert letter.lease is not None
    await shard.settle("w", [Outcome(id, letter.lease.token, Verb.RETRY, history=b"h")])
    await shard.take("w", 1)
    look.client.xdel(look.key("letters"), id.removeprefix("0-"))
    await walk(shard)
    assert (look.leases, look.state, look.history) == ({}, {}, {})
    await shard.repair()


async def test_a_suspect_does_not_run_among_the_others(shard: Shard, look: Look) -> None:
    """A take that died left it in the schedule, too: that row goes when the lease runs out."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.take("w", 1)
    look.client.zadd(look.key("schedule"), {id.removeprefix("0-"): NOW_MS})
    look.age(60_000)
    await walk(shard)
    assert look.where(id) == ["suspects"]


async def test_a_strangers_lease_ahead_of_the_mark_is_let_go(shard: Shard, look: Look) -> None:
    """The intake has yet to come to the letter: it is no suspect, and waits as before."""
    await shard.take("w", 1)
    (id,) = map(str, await shard.add(several(1)))
    look.lease_as_stranger(id)
    look.age(60_000)
    assert (await walk(shard))[0] == Reclaimed(b"0-0", [], [])
    assert look.where(id) == [] and look.state == {} and "crashed" not in look.totals
    assert [letter.id for letter in (await shard.take("w", 5)).letters] == [id]


async def test_live_leases_of_deleted_entries_are_swept_too(shard: Shard, look: Look) -> None:
    """Whatever this server's XAUTOCLAIM does with them, repair leaves none."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.take("w", 1)
    look.client.xdel(look.key("letters"), id.removeprefix("0-"))
    await walk(shard)
    await shard.repair()
    assert look.leases == {} and look.totals == {"captured": 1, "lost_externally": 1}


async def test_the_reclaimer_is_no_worker(shard: Shard, look: Look) -> None:
    """A script that died after its first write: the leases are the reclaimer's, run out again, and none is lost."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.take("w", 1)
    look.lease_as_stranger(id, "reclaimer", TOKEN)
    assert await shard.settle("w", [Outcome(id, TOKEN, Verb.RESOLVE)]) == [Verdict.LOST]
    look.age(60_000)
    assert (await walk(shard))[0].suspects == [id]


async def test_a_call_that_comes_too_late_takes_nothing_back(shard: Shard, look: Look) -> None:
    """It waited in the socket of a server that hung, while nobody could renew a lease; it tells the time."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.take("w", 1)
    look.age(60_000)
    before = look.leases
    assert shard.now_us is not None
    now_ms = shard.now_us // 1000
    late = await shard.reclaim(lease_ms=30_000, max_crashes=3, until_ms=now_ms - 1)
    assert (late.cursor, late.suspects, late.parked, late.now_ms) == (b"0-0", [], [], now_ms)
    assert look.leases == before
    assert (await shard.reclaim(lease_ms=30_000, max_crashes=3, until_ms=now_ms)).suspects == [id]


@pytest.mark.parametrize("stroke", ["no stream", "no group"])
async def test_without_stream_or_group_there_is_nothing_to_reclaim(stroke: str, shard: Shard, look: Look) -> None:
    """And nothing is made."""
    if stroke == "no group":
        await shard.add(several(1))
    before = look.snapshot()
    assert await walk(shard) == (Reclaimed(b"0-0", [], []), 1)
    assert look.snapshot() == before


@pytest.mark.parametrize("words", [["0-0", "x", 3], ["0-0", 1, "x"], ["0-0", 1, ""], ["x", 1, 3], ["0-0", 1]])
async def test_malformed_arguments_are_refused(words: list[str | int], shard: Shard, look: Look) -> None:
    """Before the first write: the lease stays whose it is."""
    await shard.add(several(1))
    await shard.take("w", 1)
    look.age(60_000)
    before = look.leases
    with pytest.raises(Exception, match=r"ERR|arithmetic|compare|number|Invalid"):
        await shard.call("reclaim", words)
    assert look.leases == before
