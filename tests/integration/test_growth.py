"""reshard: a live queue gets more shards; nothing is lost or captured twice, and nobody has to be restarted."""

from functools import partial
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.load import finish, under_load
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import ConfigError, DeadLetterConfig, DeadLetterQueue, LayoutMismatch, StoreUnavailable
from uno.event_bus.dead_letter.store.layout import queue_key, shard_key
from uno.event_bus.dead_letter.store.route import Refused


async def shards_of(queue: DeadLetterQueue) -> int:
    return (await queue.stats()).shards


async def test_a_repeat_finds_its_letter_in_its_home_of_before(queues: Queues, place: Place) -> None:
    """By event id, alone and in a batch, from the process that grew the queue and from one that follows it."""
    queue, other = queues(shards=1), queues(shards=1)
    names = [f"event-{n}" for n in range(50)]
    ids = await queue.add_many([{}] * 50, event_ids=names, delay=60)
    await other.open()
    assert await queue.reshard(8) == 8
    for repeating in (queue, other, queues(shards=8)):
        assert await repeating.add_many([{}] * 50, event_ids=names, delay=60) == ids
        assert await repeating.add({}, event_id=names[7], delay=60) == ids[7]
    more = await other.add_many([{}] * 200, delay=60)
    assert {id.partition("-")[0] for id in more} == {str(n) for n in range(8)}
    assert await shards_of(other) == 8
    assert [letter.id async for letter in queue.letters()] and (await queue.stats()).open == 250


async def test_a_repeat_finds_it_also_when_the_layouts_node_is_ahead(queues: Queues, place: Place) -> None:
    """A failover to a node half an hour ahead makes the growth look long over; who lived through it knows better."""
    queue = queues(shards=1)
    names = [f"event-{n}" for n in range(20)]
    ids = await queue.add_many([{}] * 20, event_ids=names, delay=60)
    await queues(shards=1).reshard(4)
    place.client.hincrby(queue_key("default", "layout"), "grown", -1_800_000)
    assert await queue.add_many([{}] * 20, event_ids=names, delay=60) == ids
    await queue.aclose()  # it opens again with its next call
    for again in (queue, queues(shards=1)):
        assert await again.add_many([{}] * 20, event_ids=names, delay=60) == ids


@pytest.mark.parametrize("named", [True, False], ids=["named", "without a name"])
async def test_a_growth_between_a_lost_reply_and_its_repeat_captures_nothing_twice(
    queues: Queues, server: Server, named: bool
) -> None:
    """Also letters whose ids the engine made: no key tells of them in a new home, so they stay where they are tried."""
    with Proxy(server.url) as proxy:
        queue, operator = queues(proxy.url, shards=1, operation_timeout=20.0), queues(shards=1)
        await queue.add({}, delay=60)
        proxy.lose_replies("add", 1)
        names = [f"event-{n}" for n in range(20)] if named else None
        async with anyio.create_task_group() as group:
            group.start_soon(partial(queue.add_many, [{}] * 20, event_ids=names, delay=60))
            await eventually(lambda: proxy.replies_to_lose == 0)
            proxy.refusing = True
            await operator.reshard(16)
            proxy.heal()
        stats = await operator.stats()
        assert (stats.open, stats.totals["captured"], stats.totals["repeated"]) == (21, 21, 20)
        await queue.aclose()


@pytest.mark.parametrize("event_id", ["e", None], ids=["named", "without a name"])
async def test_an_unknown_outcome_stays_unknown_after_a_growth(queues: Queues, event_id: str | None) -> None:
    """The first try may have run; that the node is away when the growth has been heard of says nothing of it."""
    queue = queues(shards=1)
    await queue.add({}, delay=60)
    await queues(shards=1).reshard(16)
    errors = iter([Refused("LAYOUT", 2, certain=False)])

    async def call(*args: Any, **how: Any) -> Any:
        raise next(errors, StoreUnavailable("it is away", certain=True))

    (await queue._store()).shards[0].route.call = call  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable) as failed:
        await queue.add({}, delay=60, event_id=event_id)
    assert not failed.value.certain


async def test_ordering_keys_keep_their_homes(queues: Queues) -> None:
    """Letters of one key lie in one shard, before and after."""
    queue = queues(shards=2)
    keys = [f"customer-{n}" for n in range(20)]
    before = [await queue.add({}, ordering_key=key, delay=60) for key in keys]
    await queue.reshard(16)
    after = [await queue.add({}, ordering_key=key, delay=60) for key in keys]
    assert [id.partition("-")[0] for id in before] == [id.partition("-")[0] for id in after]


async def test_a_queue_grows_under_load(queues: Queues) -> None:
    """Twice, with a worker and a producer that know nothing of it: no error, nothing lost, nothing run twice."""
    async with under_load(queues, shards=1, operation_timeout=10.0, lease_seconds=10.0) as load:
        operator = queues(shards=1)
        for shards in (2, 16):
            await operator.reshard(shards)
            await anyio.sleep(0.3)
        await finish(load)
        assert load.errors == []
        assert max(load.ran.values()) == 1
        assert await shards_of(load.producer) == 16


@pytest.mark.parametrize("steps", range(6))
async def test_a_growth_whose_maker_died_is_ended_by_whoever_meets_it(queues: Queues, place: Place, steps: int) -> None:
    """After any number of its steps; letters of before are found, and those of after have their homes."""
    queue, maker = queues(shards=1), queues(shards=1)
    id = await queue.add({}, event_id="before", delay=60)
    store = await maker._store()
    found = await store._record.layout()
    assert await store._record.grow(found, 4, "begin")
    for index in [1, 2, 3, 0][:steps]:
        key = shard_key("default", index, "meta")
        place.client.hset(
            key, mapping={"format": 1, "protocol": 1, "epoch": 2, "mark": "0-0"} if index else {"epoch": 2}
        )
    if steps < 4:
        await queues(shards=1).reshard(4)  # nobody has met it: its maker repeats it
    assert await queue.add({}, event_id="before", delay=60) == id
    assert await queue.add({}, event_id="after", delay=60) != id
    await eventually(partial(_has, queue, 4))
    assert place.client.hget(queue_key("default", "layout"), "growing") is None


async def test_a_growth_that_a_failover_took_from_the_record_is_written_again(queues: Queues, server: Server) -> None:
    """The shards have it, and refuse whoever reads the record: a worker that knows puts it back."""
    queue, key = queues(shards=1, lease_seconds=1), queue_key("default", "layout")
    await queue.open()
    before = server.client.hgetall(key)
    await queue.reshard(4)
    server.client.delete(key)
    server.client.hset(key, mapping=before)
    async with running(queue):
        later = queues(shards=1)
        await later.open()
        await eventually(lambda: server.client.hget(key, "epoch") == b"2")
        ids = await later.add_many([{}] * 50, delay=60)
    assert {id.partition("-")[0] for id in ids} == {str(n) for n in range(4)}


async def _has(queue: DeadLetterQueue, shards: int) -> bool:
    return await shards_of(queue) == shards


@pytest.mark.parametrize("shards", [0, 1, 2, 3, 6, 2048])
async def test_a_count_that_cannot_be_is_refused(queues: Queues, shards: int) -> None:
    """Smaller, not a power of two, too many: one line, and the queue stays as it is."""
    queue = queues(shards=4)
    with pytest.raises(ConfigError, match="power of two"):
        await queue.reshard(shards)
    assert await shards_of(queue) == 4
    assert await queue.reshard(4) == 4


async def test_the_next_deploy_with_the_old_count_starts(queues: Queues) -> None:
    """``DLQ_SHARDS`` only creates: the present or an earlier count follows, any other is a mismatch."""
    await queues(shards=2).reshard(8)
    for shards in (2, 4, 8, None):
        assert await shards_of(queues(shards=shards)) == 8
    for shards in (1, 16):
        with pytest.raises(LayoutMismatch, match="shards"):
            async with DeadLetterQueue(queues.place.url, DeadLetterConfig(shards=shards)):
                pass
