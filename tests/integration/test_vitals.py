"""Vitals: ready means that letters get on, and not ready says why."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.telemetry.recorder import Recorder
from uno.event_bus.dead_letter.worker.vitals import Vitals


@asynccontextmanager
async def watched(queue: DeadLetterQueue) -> AsyncIterator[tuple[Vitals, anyio.Event]]:
    """A worker whose vitals are looked at; it has just begun."""
    vitals, stop = Vitals(queue.config), anyio.Event()

    async def run() -> None:
        await queue.run(stop=stop, vitals=vitals)

    async with anyio.create_task_group() as group:
        group.start_soon(vitals.run)
        async with anyio.create_task_group() as working:
            working.start_soon(run)
            yield vitals, stop
            stop.set()
        group.cancel_scope.cancel()


async def ready(vitals: Vitals) -> Condition:
    """Wait until the worker is ready."""
    await eventually(lambda: vitals.ready().ok)
    return vitals.ready()


async def test_before_there_is_a_worker_the_process_is_live_and_not_ready(queues: Queues) -> None:
    vitals = Vitals(queues().config)
    assert vitals.live().ok and not vitals.ready().ok
    assert vitals.ready().why == "the queue is not open yet"
    vitals.waits("waiting for Redis: connection refused")
    assert vitals.ready().why == "waiting for Redis: connection refused"


async def test_a_worker_is_ready_when_its_shards_have_answered_and_until_it_stops(queues: Queues) -> None:
    """While handlers finish it is live."""
    queue = queues(shards=2)
    begun, go = anyio.Event(), anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        begun.set()
        await go.wait()

    async with watched(queue) as (vitals, stop):
        told = await ready(vitals)
        assert told.facts["served"] == [0, 1] and told.facts["shards"] == 2
        assert told.facts["queue"] == queue.config.queue and _silence(vitals) < 5
        await queue.add(1, type="a", delay=0)
        await begun.wait()
        stop.set()
        await eventually(lambda: not vitals.ready().ok)
        assert vitals.ready().why == "the worker stops" and vitals.live().ok
        go.set()


async def test_a_blocked_loop_is_neither_live_nor_ready(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than a lease; the first beat afterwards heals it."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.vitals.SHORTEST_BLOCK_S", 0.1)
    async with watched(queues(lease_seconds=0.3)) as (vitals, _):
        await ready(vitals)
        time.sleep(0.35)  # noqa: ASYNC251 - the fault
        live, told = vitals.live(), vitals.ready()
        assert not live.ok and live.why.startswith("the event loop has been blocked for 0.")
        assert not told.ok and told.why == live.why
        await eventually(lambda: vitals.live().ok)


async def test_a_worker_whose_threads_all_hang_is_not_ready(queues: Queues) -> None:
    queue = queues(concurrency=2)
    release = anyio.Event()

    @queue.handler(timeout=0.05)
    def hang(event: int) -> None:
        while not release.is_set():
            time.sleep(0.01)

    async with watched(queue) as (vitals, _):
        await ready(vitals)
        await queue.add_many([1, 2], type="a", delay=0)
        await eventually(lambda: not vitals.ready().ok)
        assert vitals.ready().why == "every thread is taken by a call that does not end"
        assert vitals.live().ok
        release.set()
        await ready(vitals)


async def test_handlers_that_take_long_make_no_shard_silent(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without room does not ask; it is ready all the same, as its heartbeats get through."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.vitals.SILENT_AFTER_S", 0.1)
    queue = queues(concurrency=1, shards=1, batch_size=1)
    go = anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        await go.wait()

    async with watched(queue) as (vitals, _):
        await queue.add_many(list(range(8)), type="a", delay=0)
        await eventually(lambda: vitals.ready().facts.get("held", 0) and _silence(vitals) > 0.4)
        assert vitals.ready().ok
        go.set()


def _silence(vitals: Vitals) -> float:
    seconds = vitals.ready().facts["last_reply_s"]
    assert isinstance(seconds, float)
    return seconds


async def test_a_shard_that_does_not_answer_makes_the_worker_unready_until_it_does(
    queues: Queues, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not PING alone: the server answers that, and nothing that the engine asks for."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.vitals.SILENT_AFTER_S", 0.1)
    async with watched(queues(shards=1, operation_timeout=0.3)) as (vitals, _):
        await ready(vitals)
        server.client.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
        # Long before heartbeats tell: they are a third of a lease apart.
        await eventually(lambda: not vitals.ready().ok, within_s=8)
        assert vitals.ready().why.startswith("no answer from shard 0")
        assert server.client.ping() and vitals.live().ok
        server.client.execute_command("CLIENT", "UNPAUSE")
        await ready(vitals)


async def test_a_recorder_that_is_added_hears_beside_the_applications_own(queues: Queues) -> None:
    """What one raises is not the other's trouble."""

    class Counting(Recorder):
        def __init__(self) -> None:
            self.attempts = 0

        def attempted(self, *told: object, **more: object) -> None:
            self.attempts += 1

    class Failing(Recorder):
        def attempted(self, *told: object, **more: object) -> None:
            raise ValueError("no")

    first, last = Counting(), Counting()
    queue = queues()
    for recorder in (first, Failing(), last):
        queue.add_recorder(recorder)
    queue.add_handler(lambda event: None)
    await queue.add_many([1, 2, 3], type="a", delay=0)
    await queue.process()
    assert (first.attempts, last.attempts) == (3, 3)
