"""A full server: captures are refused whole, everything that drains goes on, and memory falls."""

from collections.abc import Iterator

import pytest

from tests.support.clean import assert_clean
from tests.support.look import Look, new, several
from tests.support.servers import Server
from uno.event_bus.dead_letter.errors import QueueFull
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Seen, Taken

NOW_MS = 1_800_000_000_000


@pytest.fixture
def drains(server: Server) -> None:
    """Redis 6.2 has no `allow-oom`: there a full server may refuse the verbs that drain, too."""
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 refuses some of this on a full server")


class Full:
    """Makes the server full: its limit is below what it uses."""

    def __init__(self, server: Server) -> None:
        self.client = server.client

    def __call__(self) -> None:
        self.client.config_set("maxmemory", "100kb")

    def used(self) -> int:
        return int(self.client.info("memory")["used_memory"])


@pytest.fixture
def full(server: Server) -> Iterator[Full]:
    yield Full(server)
    server.client.config_set("maxmemory", 0)  # `verify` at the end has nothing to do with it


def outcomes(taken: Taken, verb: Verb) -> list[Outcome]:
    return [Outcome(x.id, x.lease.token, verb, 1_000, fingerprint="f") for x in taken.letters if x.lease]


async def test_a_capture_is_refused_whole(shard: Shard, look: Look, full: Full) -> None:
    """QueueFull, not a byte written, nothing trimmed to make room."""
    await shard.add(several(5))
    before = look.snapshot()
    full()
    with pytest.raises(QueueFull, match="out of memory"):
        await shard.add([new("more", fingerprint="f")])
    assert look.snapshot() == before


async def test_the_first_capture_of_a_shard_is_refused_whole(shard: Shard, look: Look, full: Full) -> None:
    """No half-made shard either."""
    full()
    with pytest.raises(QueueFull):
        await shard.add([new()])
    assert look.snapshot() == {}


async def test_a_redrive_is_refused_whole(shard: Shard, look: Look, full: Full, drains: None) -> None:
    """It brings work in: parked letters stay parked."""
    (id,) = map(str, await shard.add(several(1)))
    await shard.settle("w", outcomes(await shard.take("w", 1), Verb.PARK))
    before = look.snapshot()
    full()
    with pytest.raises(QueueFull):
        await shard.reschedule([Seen(id, LetterState.PARKED, NOW_MS)])
    assert look.snapshot() == before


async def test_letters_are_worked_off_and_memory_falls(shard: Shard, look: Look, full: Full, drains: None) -> None:
    """take, settle with every outcome, take again: the way out of a full server."""
    for part in range(4):
        await shard.add(several(100, f"{part}-", payload=b"x" * 10_000, fingerprint="f"))
    used = full.used()
    full()
    verbs = (Verb.RETRY, Verb.PARK, Verb.RELEASE, Verb.RESOLVE, Verb.DISCARD)
    for step in range(8):
        taken = await shard.take("w", 50)
        assert taken.letters
        assert set(await shard.settle("w", outcomes(taken, verbs[step % 5]))) == {"OK"}
    assert shard.now_us is not None
    shard.now_us += 1_000_000
    while (taken := await shard.take("w", 100)).letters:
        await shard.settle("w", outcomes(taken, Verb.RESOLVE))
    assert full.used() < used - 1_000_000
    assert look.totals["captured"] == 400
    await assert_clean(shard)


async def test_crashed_letters_are_reclaimed_and_parked(shard: Shard, look: Look, full: Full, drains: None) -> None:
    """A full server is when workers die."""
    await shard.add(several(4))
    await shard.take("w", 4)
    look.age(60_000)
    full()
    assert len((await shard.reclaim(lease_ms=30_000, max_crashes=3)).suspects) == 4
    (letter,) = (await shard.take("w", 1, alone=True)).letters
    assert letter.lease is not None
    assert (await shard.extend("w", [(letter.id, letter.lease.token)])).lost == []
    look.age(60_000)
    assert len((await shard.reclaim(lease_ms=30_000, max_crashes=1)).parked) == 1


async def test_leases_are_kept(shard: Shard, full: Full) -> None:
    """On Redis 6.2, too, which runs a script to its end whose first write needs no memory."""
    await shard.add(several(4))
    letters = (await shard.take("w", 4)).letters
    full()
    assert shard.now_us is not None
    shard.now_us += 1_000_000  # so that the time is written down, as well
    pairs = [(letter.id, letter.lease.token) for letter in letters if letter.lease]
    assert len(pairs) == 4 and (await shard.extend("w", pairs)).lost == []


async def test_operators_can_clear_the_queue(shard: Shard, look: Look, full: Full, drains: None) -> None:
    """park, hold, discard, expire, repair, and every look at the shard."""
    ids = [str(id) for id in await shard.add(several(6))]
    full()
    seen = [Seen(id, LetterState.WAITING, 0) for id in ids]
    assert await shard.park(seen[:2], reason="r") == ["OK"] * 2
    scheduled = [seen[i]._replace(state=LetterState.SCHEDULED, since_ms=NOW_MS) for i in (2, 3)]
    assert await shard.hold(scheduled[:1]) == ["OK"]
    assert await shard.discard(scheduled[1:], why="") == ["OK"]
    assert await shard.expire(0) == ids[:2]
    await shard.repair()
    assert len((await browse.scan(shard)).letters) == (await browse.stats(shard))["open"] == 3
    assert look.totals["expired"] == 2


async def test_an_empty_full_server_can_be_looked_at(shard: Shard, look: Look, full: Full, drains: None) -> None:
    """A worker that starts now makes its group and waits."""
    full()
    assert (await shard.take("w", 5)).remade
    await shard.repair()
    assert (await browse.stats(shard))["open"] == 0 and look.letters == []
