"""Vitals: ready means that letters get on, and not ready says why."""

import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import DeadLetterQueue, Letter
from uno.event_bus.dead_letter.handlers import Handlers
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.telemetry.log_fields import Fields
from uno.event_bus.dead_letter.telemetry.recorder import Recorder
from uno.event_bus.dead_letter.worker.session import consumer_name
from uno.event_bus.dead_letter.worker.shares import shares
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
        assert told.facts["queue"] == queue.config.queue and _silence(vitals) < 20
        await queue.add(1, type="a", delay=0)
        await begun.wait()
        stop.set()
        await eventually(lambda: not vitals.ready().ok)
        assert vitals.ready().why == "the worker stops" and vitals.live().ok
        go.set()


@pytest.mark.timed(0.2)
async def test_a_blocked_loop_is_neither_live_nor_ready(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than a lease; the first beat afterwards heals it."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.vitals.SHORTEST_BLOCK_S", 0.1)
    async with watched(queues(lease_seconds=0.3)) as (vitals, _):
        await ready(vitals)
        time.sleep(0.35)  # noqa: ASYNC251 - the fault
        live, told = vitals.live(), vitals.ready()
        assert not live.ok and re.match(r"the event loop has been blocked for \d+\.", live.why)
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


@pytest.mark.timed(1.0)
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


async def test_a_worker_is_ready_again_after_an_outage_that_its_handlers_outlast(
    queues: Queues, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room it does not ask the shard that was away: that it asked in vain, before, says nothing."""
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.vitals.SILENT_AFTER_S", 0.1)
    queue = queues(shards=2, concurrency=1, batch_size=1)
    meta = (await queue._store()).shards[0].key("meta")
    go = anyio.Event()

    @queue.handler()
    async def handle(event: object) -> None:
        await go.wait()

    async with watched(queue) as (vitals, _):
        await ready(vitals)
        server.client.hset(meta, "protocol", 99)  # no answer that the engine understands
        await eventually(lambda: vitals.ready().why.startswith("no answer from shard 0"))
        for key in await _keys_of(queue, 1):
            await queue.add({}, ordering_key=key, delay=0)
        await eventually(lambda: vitals.ready().facts["held"] == 1)
        server.client.hset(meta, "protocol", 1)
        await ready(vitals)
        assert vitals.ready().facts["held"] == 1
        go.set()


async def _keys_of(queue: DeadLetterQueue, index: int) -> list[str]:
    """Return ordering keys of one shard."""
    store = await queue._store()
    return [key for key in "abcdefghijklmnop" if store.home_of(NewLetter("e", "t", b"", ordering_key=key)) == index]


@pytest.mark.timed(0.2)
async def test_a_worker_is_ready_when_the_shard_that_never_answered_is_anothers(
    queues: Queues, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its own alone."""
    pairs = iter(lambda: (consumer_name(), consumer_name()), None)
    names = next(pair for pair in pairs if shares(pair, 2)[pair[0]] == {1})  # shard 0 goes to the second
    words = iter([name.rpartition("-")[2] for name in names])
    secrets = SimpleNamespace(token_hex=lambda size: next(words))
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.session.secrets", secrets)
    first, second = queues(shards=2, lease_seconds=1.5), queues(shards=2, lease_seconds=1.5)
    meta = (await first._store()).shards[0].key("meta")
    server.client.hset(meta, mapping={"protocol": 99, "mark": "0-0"})
    async with watched(first) as (vitals, _):
        await eventually(lambda: vitals.ready().facts.get("served") == [0, 1])
        assert not vitals.ready().ok
        async with watched(second) as (others, _):
            await ready(vitals)
            assert vitals.ready().facts["served"] == [1]
            assert others.ready().facts["served"] == [0] and not others.ready().ok
    server.client.hset(meta, "protocol", 1)


class _RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise KeyError("redact")


def _raising_factory(*args: Any, **more: Any) -> logging.LogRecord:
    """A factory whose records have a field that ours have: `extra` raises."""
    record = logging.LogRecord(*args, **more)
    record.letter_id = None
    return record


@pytest.fixture(params=["filter", "factory"])
def broken_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """Logging of an application that raises on the lines of the settler."""
    logger, broken = logging.getLogger("uno.event_bus.dead_letter.worker.settler"), _RaisingFilter()
    level, factory = logger.level, logging.getLogRecordFactory()
    logger.setLevel(logging.INFO)
    if request.param == "filter":
        logger.addFilter(broken)
    else:
        logging.setLogRecordFactory(_raising_factory)
    yield
    logging.setLogRecordFactory(factory)
    logger.removeFilter(broken)
    logger.setLevel(level)


async def test_logging_that_raises_holds_no_letter(queues: Queues, broken_logging: None) -> None:
    """On the line about one that is parked: all are settled, let go of, and told to hooks."""
    queue, told = queues(shards=1, max_retries=0), list[str]()

    @queue.on_parked
    async def hook(letter: Letter, why: str) -> None:
        told.append(letter.id)

    @queue.handler()
    async def fail(event: int) -> None:
        raise ValueError("no")

    async with watched(queue) as (vitals, _):
        await ready(vitals)
        ids = await queue.add_many(range(10), delay=0)
        await eventually(lambda: sorted(told) == sorted(ids))
        await eventually(lambda: vitals.ready().facts["held"] == 0)
    assert (await queue.stats()).parked == 10


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


async def test_a_line_about_a_letter_that_could_not_be_run_names_that_letter(
    queues: Queues, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the one that was run in its place before."""
    queue, fields, ran = queues(shards=1, concurrency=1), Fields(), anyio.Event()

    @queue.handler()
    async def handle(event: object) -> None:
        ran.set()

    def find(self: Handlers, letter: Letter) -> None:
        raise RuntimeError("a defect")

    caplog.handler.addFilter(fields)
    try:
        async with watched(queue) as (vitals, _):
            await queue.add({}, delay=0)
            await ran.wait()
            await eventually(lambda: vitals.ready().facts["held"] == 0)
            with monkeypatch.context() as broken:
                broken.setattr(Handlers, "find", find)
                id = await queue.add({}, delay=0)
                await eventually(lambda: "could not be run" in caplog.text)
    finally:
        caplog.handler.removeFilter(fields)
    lines = [line for line in caplog.records if "could not be run" in line.getMessage()]
    assert {line.__dict__["letter_id"] for line in lines} == {id}
