"""The assignment: every shard has a worker, workers share them, and a change is over within two heartbeats."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, in_time, running
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.store.layout import queue_key

LEASE_S = 3.0
TWO_HEARTBEATS_S = 2 * LEASE_S / 3
SLACK_S = 0.5
"""For a machine that does other things, too."""


def worker_of(queues: Queues, shards: int = 8) -> DeadLetterQueue:
    queue = queues(shards=shards, lease_seconds=LEASE_S)
    queue.add_handler(lambda event: None)
    return queue


async def split(queue: DeadLetterQueue) -> list[tuple[int, ...]]:
    """What each worker that lives serves, by what it tells."""
    return [worker.shards for worker in await queue.workers()]


def is_even(parts: list[tuple[int, ...]], workers: int, shards: int) -> bool:
    served = [shard for part in parts for shard in part]
    return (
        len(parts) == workers
        and set(served) == set(range(shards))
        and len(served) == max(workers, shards)
        and max(map(len, parts)) - min(map(len, parts)) <= 1
    )


async def becomes_even(queue: DeadLetterQueue, workers: int, shards: int = 8) -> float:
    """Wait until so many workers share the shards evenly; return how long that took."""
    began = monotonic()

    async def check() -> bool:
        return is_even(await split(queue), workers, shards)

    await eventually(check)
    return monotonic() - began


@asynccontextmanager
async def workers_at_work(queues: Queues, count: int, shards: int = 8) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(running(worker_of(queues, shards)))
        yield stack


async def test_workers_that_come_and_go_share_the_shards_anew(queues: Queues) -> None:
    """One, two, three, and two again: within two heartbeats each, and every letter is run meanwhile."""
    looking = worker_of(queues)

    async def come_and_go() -> float:
        async with running(worker_of(queues)):
            took = [await becomes_even(looking, 1)]
            async with running(worker_of(queues)):
                took.append(await becomes_even(looking, 2))
                async with running(worker_of(queues)):
                    await looking.add_many(list(range(100)), delay=0)
                    took.append(await becomes_even(looking, 3))
                took.append(await becomes_even(looking, 2))
            await eventually(lambda: _is_empty(looking))
        return max(took)

    await in_time(come_and_go, TWO_HEARTBEATS_S + SLACK_S)

    async def nobody_is_left() -> bool:
        return await split(looking) == []

    await eventually(nobody_is_left)


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


@pytest.mark.parametrize("shards", [1, 2])
async def test_there_may_be_more_workers_than_shards(queues: Queues, shards: int) -> None:
    """None is idle: they share shards."""
    async with workers_at_work(queues, 3, shards):
        await becomes_even(worker_of(queues, shards), 3, shards)


async def test_a_worker_that_is_cut_off_is_replaced_and_keeps_what_it_served(queues: Queues, place: Place) -> None:
    """Those that see nothing of it take its shards over within two heartbeats; it goes on with what it had."""
    looking = worker_of(queues)
    with Proxy(place.url) as proxy:
        cut = queues(proxy.redis, shards=8, lease_seconds=LEASE_S)
        cut.add_handler(lambda event: None)
        async with running(worker_of(queues)), running(cut):

            async def is_cut_off() -> float:
                proxy.heal()
                await becomes_even(looking, 2)
                proxy.silence("enlist")
                return await becomes_even(looking, 1)

            await in_time(is_cut_off, TWO_HEARTBEATS_S + LEASE_S / 6 + SLACK_S)
            await looking.add_many(list(range(100)), delay=0)
            await eventually(lambda: _is_empty(looking))
            proxy.heal()
            await becomes_even(looking, 2)


async def test_a_registry_that_is_wiped_or_of_another_type_stops_nobody(queues: Queues, place: Place) -> None:
    """The workers serve on what they served; when it is mended they are on the roster again."""
    looking = worker_of(queues)
    async with workers_at_work(queues, 2):
        await becomes_even(looking, 2)
        key = queue_key("default", "workers")
        place.client.delete(key)
        place.client.set(key, "a stranger's")
        await anyio.sleep(LEASE_S / 2)
        await looking.add_many(list(range(100)), delay=0)
        await eventually(lambda: _is_empty(looking))
        place.client.delete(key)
        await becomes_even(looking, 2)


async def test_a_worker_that_serves_fewer_shards_closes_the_connections_that_waited_for_them(queues: Queues) -> None:
    """Three a node, and one for each shard it serves: also when it once served them all."""
    looking = worker_of(queues)
    async with running(worker_of(queues)):
        await becomes_even(looking, 1)
        await eventually(lambda: sum("xread" in each for each in queues.connections()) == 8)
        async with running(worker_of(queues)), running(worker_of(queues)), running(worker_of(queues)):
            await becomes_even(looking, 4)
            await looking.aclose()
            nodes = len(queues.place.clients())
            await eventually(lambda: len(queues.connections()) <= 4 * 3 * nodes + 8)


async def test_a_worker_whose_handlers_hang_leaves_its_shards_to_others(queues: Queues) -> None:
    """It lives, and keeps what it holds; but letters of its shards would wait for ever. Later it serves again."""
    # A lease that a stalled machine does not cost; shorter ones would not have the worker count as unable any sooner.
    hanging, other = queues(shards=4, lease_seconds=5, concurrency=2), queues(shards=4, lease_seconds=5)
    hangs, may_end = 0, anyio.Event()
    ran: list[int] = []

    @hanging.handler()
    async def hang(event: int) -> None:
        nonlocal hangs
        hangs += 1
        await may_end.wait()

    other.add_handler(ran.append)
    async with running(hanging):
        await hanging.add_many([-1, -2], delay=0)
        await eventually(lambda: hangs == 2)
        async with running(other):
            await other.add_many(list(range(100)), delay=0)
            await eventually(lambda: len(ran) == 100)
            assert hangs == 2
            may_end.set()
            await eventually(lambda: _works_evenly(other))
    assert (await other.stats()).totals["crashed"] == 0


async def _works_evenly(queue: DeadLetterQueue) -> bool:
    return is_even(await split(queue), 2, 4)
