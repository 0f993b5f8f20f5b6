"""Shards whose times differ: a worker hears of all of them, and makes no letter of one old by another's."""

import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.integration.conftest import Queues
from tests.integration.test_vitals import ready, watched
from tests.support.cli import Cli
from tests.support.servers import Server
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.letter import LetterState, NewLetter
from uno.event_bus.dead_letter.store.lookup import Kept
from uno.event_bus.dead_letter.store.values import Seen

HOUR_MS = 3_600_000


async def keys_of_shards(queue: DeadLetterQueue) -> list[str]:
    """Return an ordering key of each shard, by its index."""
    store = await queue._store()
    keys = {store.home_of(NewLetter("e", "t", b"", ordering_key=key)): key for key in "abcdefghijkl"}
    return [keys[index] for index in range(len(store.shards))]


async def lead(queue: DeadLetterQueue, server: Server, index: int, hours: int) -> None:
    """Have a shard be ahead of its server, as after a step back of its clock that it has noticed."""
    shard = (await queue._store()).shards[index]
    ahead_us = hours * HOUR_MS * 1000
    clock_us = time.time_ns() // 1000 + ahead_us
    server.client.hset(shard.key("meta"), mapping={"clock": clock_us, "lead": ahead_us})


async def test_a_letter_is_not_given_up_by_the_time_of_another_shard(queues: Queues, server: Server) -> None:
    """Its hour of retries begins with its capture; the last that was heard is of a shard two hours ahead."""
    queue = queues(shards=2, retry_for=3600, retry_delay=60.0)
    ahead, right = await keys_of_shards(queue)
    await queue.add("put off", ordering_key=ahead, delay=600)
    await lead(queue, server, 0, 2)
    begun, heard = anyio.Event(), anyio.Event()

    @queue.handler("ahead")
    async def note(event: object) -> None:
        heard.set()

    @queue.handler("right")
    async def fail(event: object) -> None:
        begun.set()
        await heard.wait()
        raise ValueError("not yet")

    async with running(queue):
        await queue.add({}, type="right", ordering_key=right, delay=0)
        await begun.wait()
        await queue.add({}, type="ahead", ordering_key=ahead, delay=0)
        totals = await eventually(lambda: _totals_when_ended(queue))
    assert (totals["retried"], totals["parked"]) == (1, 0)


async def _totals_when_ended(queue: DeadLetterQueue) -> Any:
    totals = (await queue.stats()).totals
    return totals if totals["retried"] + totals["parked"] else None


async def test_a_replay_gives_a_letter_the_retries_that_a_worker_gives_it(queues: Queues, server: Server) -> None:
    """Though its shard is two hours ahead."""
    queue = queues(shards=1, retry_for=3600, retry_delay=60.0)
    await queue.add({}, delay=60)
    await lead(queue, server, 0, 2)

    @queue.handler()
    async def fail(event: object) -> None:
        raise ValueError("not yet")

    assert tuple(await queue.replay_events()) == (0, 1)
    totals = (await queue.stats()).totals
    assert (totals["retried"], totals["parked"]) == (1, 0)


async def test_a_replay_that_is_cut_short_leaves_each_letter_due_when_it_was(queues: Queues, server: Server) -> None:
    """In an hour: on a shard that is right, and on one two hours ahead."""
    queue = queues(shards=2)
    await queue.open()
    keys = await keys_of_shards(queue)
    await lead(queue, server, 1, 2)
    ids = [await queue.add({}, ordering_key=key, delay=3600) for key in keys]
    due_ms = time.time() * 1000 + HOUR_MS
    started: list[object] = []

    @queue.handler()
    async def hang(event: object) -> None:
        started.append(event)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(queue.replay_events)
        await eventually(lambda: len(started) == 2)
        group.cancel_scope.cancel()
    for id in ids:
        letter = await queue.get(id)
        assert letter.state is LetterState.SCHEDULED
        assert letter.due_ms == pytest.approx(due_ms, abs=10_000)


@pytest.mark.parametrize("index", [0, 1])
async def test_process_runs_the_suspect_of_a_shard_that_is_ahead(index: int, queues: Queues, server: Server) -> None:
    """It is due by that shard's time, whichever shard was heard last."""
    queue = queues(shards=2)
    keys = await keys_of_shards(queue)
    shard = (await queue._store()).shards[index]
    await lead(queue, server, index, 2)
    await queue.add({}, ordering_key=keys[index], delay=0)
    await shard.take("dead", 1)
    await eventually(lambda: _reclaimed(shard))
    ran: list[object] = []
    queue.add_handler(ran.append)
    await queue.process()
    assert len(ran) == 1


async def _reclaimed(shard: Any) -> list[str]:
    suspects: list[str] = (await shard.reclaim(lease_ms=1, max_crashes=5)).suspects
    return suspects


async def test_no_worker_is_emptied_for_a_suspect_that_is_put_off(queues: Queues, server: Server) -> None:
    """By ten minutes, where it stands; the last that was heard is of a shard two hours ahead."""
    queue = queues(shards=2)
    ahead, right = await keys_of_shards(queue)
    shard = (await queue._store()).shards[1]
    await queue.add({}, ordering_key=right, delay=0)
    await shard.take("dead", 1)
    [id] = await eventually(lambda: _reclaimed(shard))
    suspect = Seen(id, LetterState.SUSPECT, (await queue.get(id)).since_ms)
    assert await shard.reschedule([suspect], delay_ms=600_000) == ["OK"]
    await queue.add({}, ordering_key=ahead, delay=600)
    await lead(queue, server, 0, 2)
    ran = anyio.Event()

    @queue.handler()
    async def handle(event: object) -> None:
        ran.set()

    async with watched(queue) as (vitals, _):
        await ready(vitals)
        await queue.add({}, ordering_key=ahead, delay=0)
        await ran.wait()
        worker = vitals._worker
        assert worker is not None and worker.takers[1].suspect_due_ms is not None
        assert not worker._isolator.has_due() and not worker._isolator._is_overdue()


@pytest.mark.parametrize("is_strange", [False, True])
async def test_ages_are_by_the_servers_clock(is_strange: bool, queues: Queues, server: Server) -> None:
    """Of the oldest letter and the longest due one, also a stranger's, on a shard that is a week ahead."""
    queue = queues(shards=1)
    await queue.open()
    await lead(queue, server, 0, 24 * 7)
    if is_strange:
        key = (await queue._store()).shards[0].key("letters")
        server.client.xadd(key, {"v": "1", "event_id": "e", "type": "a", "payload": "1"})
    else:
        await queue.add({}, delay=0)
    found = await queue.snapshot()
    [shard] = found.shards
    assert shard.oldest_age_s(found.taken_at) < 60 and shard.due_age_s(found.taken_at) < 60
    assert shard.number("lead_ms") > 6 * 24 * HOUR_MS
    queue.add_handler(lambda event: None)
    assert (await queue.process()).resolved == 1  # the books know a stranger's letter only then


async def test_an_import_tells_what_is_new_on_a_shard_that_is_ahead(
    queues: Queues, server: Server, tmp_path: Path
) -> None:
    """By the ids of its letters, which are by the server's clock."""
    queue = queues(shards=2)
    await queue.add_many([{}, {}], ordering_key="a", delay=60)
    for index in (0, 1):
        await lead(queue, server, index, 1)
    file = tmp_path / "events"
    file.write_text("".join(f'{{"type":"a","event_id":"e{n}","payload":{{}}}}\n' for n in range(5)))
    ran = await anyio.to_thread.run_sync(Cli(server.url), "import", str(file))
    assert ran.record == {"read": 5, "captured": 5, "repeated": 0, "bad": 0}


async def test_a_spooled_letter_is_found_in_the_stream_of_a_shard_that_is_ahead(queues: Queues, server: Server) -> None:
    """Its first reply was lost; whether it is there is looked for around its capture by the server's clock."""
    queue = queues(shards=1)
    await queue.add({}, event_id="first", delay=60)
    await lead(queue, server, 0, 2)
    await queue.add({}, event_id="there", delay=60)
    now_ms = time.time_ns() // 1_000_000
    kept = [Kept(NewLetter(id, "", b""), now_ms, tried=True) for id in ("there", "not")]
    assert await queue.known(kept, now_ms=now_ms) == {0}
