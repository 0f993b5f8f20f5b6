"""The worker's life: readiness, waking up, sharing, and the ordered stop."""

import asyncio
import logging
from collections import Counter
from time import monotonic
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.holding import Records
from tests.support.look import Look
from tests.support.loops import BOTH_LOOPS
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import SOON_S, eventually, running
from uno.event_bus.dead_letter import DeadLetterQueue, Letter, LetterState
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.telemetry.recorder import Recorder


async def counters_of(queue: DeadLetterQueue, id: str) -> tuple[int, int, int]:
    counters = (await queue.get(id)).counters
    return counters.failures, counters.crashes, counters.releases


# -- waking up --------------------------------------------------------------------------------------------


@pytest.mark.timed(0.1)
async def test_a_ready_worker_runs_a_new_letter_at_once(queues: Queues) -> None:
    """Without waiting for a poll: ten letters, one after the other, each well under the second of one."""
    queue = queues(shards=4)
    arrived = anyio.Event()

    @queue.handler()
    async def handle(event: Any) -> None:
        arrived.set()

    waits: list[float] = []
    async with running(queue):
        for _ in range(10):
            await anyio.sleep(0.05)  # so that the takers sleep
            arrived = anyio.Event()
            asked_at = monotonic()
            await queue.add({}, delay=0)
            await arrived.wait()
            waits.append(monotonic() - asked_at)
    assert sorted(waits)[5] < 0.2
    assert max(waits) < 0.9


@pytest.mark.timed(0.1)
async def test_a_letter_of_another_process_wakes_the_worker(queues: Queues) -> None:
    """Nobody in this process tells the taker: the stream does."""
    queue, other = queues(), queues()
    arrived = anyio.Event()
    queue.add_handler(lambda event: anyio.from_thread.run_sync(arrived.set))
    async with running(queue):
        await anyio.sleep(0.1)
        asked_at = monotonic()
        await other.add({}, delay=0)
        await arrived.wait()
    assert monotonic() - asked_at < 0.9


@pytest.mark.timed(0.1)
@pytest.mark.parametrize("delay", [0.15, 1.3])
async def test_a_scheduled_letter_runs_when_it_is_due(queues: Queues, delay: float) -> None:
    """Not before; and soon after, whether it was captured so or failed so."""
    queue = queues(retry_delay=delay, concurrency=3)
    queue.set_retry_policy(delay)
    times: list[float] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        times.append(monotonic())
        if letter.attempt == 1:
            raise ValueError

    async with running(queue):
        added_at = monotonic()
        await queue.add({}, delay=delay)
        await eventually(lambda: len(times) == 2)
    assert delay - 0.02 < times[0] - added_at < delay + 0.7
    assert delay - 0.02 < times[1] - times[0] < delay + 0.7


@pytest.mark.timed(0.1)
async def test_a_retry_by_an_operator_in_another_process_is_seen_within_a_second(queues: Queues) -> None:
    """The taker sleeps no longer than that, whatever the next due time."""
    queue, other = queues(), queues()
    done: list[Any] = []
    queue.add_handler(done.append)
    id = await queue.add({}, delay=3600)
    async with running(queue):
        await anyio.sleep(0.1)
        asked_at = monotonic()
        await other.retry(id)
        await eventually(lambda: done)
    assert monotonic() - asked_at < 2


# -- sharing ----------------------------------------------------------------------------------------------


@BOTH_LOOPS
async def test_two_workers_share_the_work_and_no_letter_runs_twice(queues: Queues) -> None:
    """Both get some; each letter is run once."""
    ran: Counter[int] = Counter()
    by: Counter[str] = Counter()
    workers = [queues(shards=4, concurrency=5) for _ in range(2)]
    for name, queue in zip("ab", workers, strict=True):

        async def handle(event: int, name: str = name) -> None:
            ran[event] += 1
            by[name] += 1
            await anyio.sleep(0.002)

        queue.add_handler(handle)
    async with running(workers[0]), running(workers[1]):
        await workers[0].add_many(list(range(400)), delay=0)
        await eventually(lambda: sum(ran.values()) >= 400)
    assert ran == Counter(range(400))
    assert min(by["a"], by["b"]) > 20
    assert (await workers[0].stats()).totals["resolved"] == 400


async def test_every_shard_gets_its_turn_under_load(queues: Queues) -> None:
    """With one place for all of them, no shard's letters wait until another shard is empty."""
    queue = queues(shards=4, concurrency=1, batch_size=10)
    seen: list[str] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        seen.append(letter.id[0])
        await anyio.sleep(0.001)

    await queue.add_many(list(range(400)), delay=0)
    await queue.process()
    halves = Counter(seen[:200])
    assert min(halves[shard] for shard in "0123") > 10, halves


async def test_new_letters_are_run_beside_a_backlog_of_retries(queues: Queues) -> None:
    """A quarter of the places is theirs."""
    queue = queues(shards=1, concurrency=4, batch_size=8)
    order: list[str] = []

    @queue.handler()
    async def handle(event: str, letter: Letter) -> None:
        if event == "old" and letter.attempt == 1:
            raise ValueError
        order.append(event)
        await anyio.sleep(0.001)

    queue.set_retry_policy(0)
    await queue.add_many(["old"] * 200, delay=0)
    await queue.process()
    order.clear()
    queue.clear_handlers()
    queue.add_handler(handle)
    await queue.add_many(["old"] * 200, event_ids=[f"o{n}" for n in range(200)], delay=0)
    await queue.add_many(["new"] * 20, event_ids=[f"n{n}" for n in range(20)], delay=0)
    await queue.process()
    assert len(order) == 220


# -- process ----------------------------------------------------------------------------------------------


async def test_process_works_off_what_is_due_and_returns(queues: Queues) -> None:
    """More than a batch, over all shards, also what becomes due at once by failing; not what is due later."""
    queue = queues(shards=4)
    queue.set_retry_policy([0, 0, 60])
    attempts: Counter[int] = Counter()

    @queue.handler()
    async def handle(event: int, letter: Letter) -> None:
        attempts[event] += 1
        if event % 10 == 0:
            raise ValueError

    await queue.add_many(list(range(500)), delay=0)
    later = await queue.add(1000, delay=60)
    with anyio.fail_after(30):
        report = await queue.process()
    assert (report.resolved, report.retried) == (450, 100)
    assert attempts == Counter({n: 2 if n % 10 == 0 else 1 for n in range(500)})
    assert (await queue.get(later)).state is LetterState.SCHEDULED
    assert (await queue.stats()).scheduled == 51


@pytest.mark.timed(0.2)
async def test_process_of_an_empty_queue_returns_at_once(queues: Queues) -> None:
    """No poll, no wait for the next due time."""
    queue = queues()
    await queue.add({}, delay=60)
    started = monotonic()
    report = await queue.process()
    assert monotonic() - started < 1
    assert str(report) == "resolved 0, retried 0, parked 0, released 0, discarded 0, stale 0, unknown 0"


@pytest.mark.timed(0.1)
async def test_process_takes_letters_back_from_dead_workers(queues: Queues) -> None:
    """Where nothing else ever runs, nobody else would; what a worker holds that lives is not waited for."""
    queue = queues(lease_seconds=0.6, shards=4)
    done: list[int] = []
    queue.add_handler(done.append)
    for n in range(12):
        await queue.add(n, delay=0)
    for shard in (await queue._store()).shards:
        await shard.take("a worker that died", 100)
    started = monotonic()
    await queue.process()
    assert (monotonic() - started < 0.5, done) == (True, [])
    await anyio.sleep(0.6)
    with anyio.fail_after(SOON_S):
        report = await queue.process()
    assert (report.resolved, sorted(done)) == (12, list(range(12)))
    assert (await queue.stats()).totals["crashed"] == 12


@pytest.mark.timed(0.1)
async def test_process_runs_what_was_taken_back_just_as_it_was_about_to_end(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself or by another worker: no lease is old any more, and nobody else may ever come."""
    queue = queues(lease_seconds=0.6, shards=1)
    done: list[int] = []
    queue.add_handler(done.append)
    await queue.add_many([1, 2, 3], delay=0)
    shard = (await queue._store()).shards[0]
    await shard.take("a worker that died", 100)
    Look(queues.place.client, shard).age(60_000)
    looks = Shard.has_leases_older_than

    async def look(shard: Shard, seconds: float) -> bool:
        await shard.reclaim(lease_ms=600, max_crashes=3)
        return await looks(shard, seconds)

    monkeypatch.setattr(Shard, "has_leases_older_than", look)
    with anyio.fail_after(SOON_S):
        await queue.process()
    assert sorted(done) == [1, 2, 3]


async def test_process_can_be_cancelled_and_gives_back_what_it_holds(queues: Queues) -> None:
    """Nothing stays leased."""
    queue = queues(concurrency=2)

    @queue.handler()
    async def handle(event: Any) -> None:
        await anyio.sleep(60)

    await queue.add_many([1, 2, 3, 4], delay=0)
    with anyio.move_on_after(0.3) as scope:
        await queue.process()
    assert scope.cancelled_caught
    stats = await queue.stats()
    assert (stats.leased, stats.open, stats.totals["crashed"], stats.totals["retried"]) == (0, 4, 0, 0)


# -- stop -------------------------------------------------------------------------------------------------


async def test_a_stop_releases_what_was_not_started_and_finishes_what_runs(queues: Queues) -> None:
    """Neither is a failure or a crash; nothing is taken any more."""
    queue = queues(concurrency=2, batch_size=10)
    began, release = anyio.Event(), anyio.Event()
    started: list[int] = []

    @queue.handler()
    async def handle(event: int) -> None:
        started.append(event)
        if event >= 50:
            began.set()
            await release.wait()

    async with running(queue) as worker:
        await queue.add_many(list(range(50)), delay=0)  # quick ones: the worker takes some ahead
        ids = await queue.add_many(list(range(50, 70)), delay=0)
        await began.wait()
        await anyio.sleep(0.05)
        running_then = [n for n in started if n >= 50]
        worker.stop.set()
        await anyio.sleep(0.05)
        release.set()
    assert [n for n in started if n >= 50] == running_then
    stats = await queue.stats()
    assert stats.leased == 0
    assert worker.report is not None
    assert worker.report.resolved == stats.totals["resolved"] == len(started)
    assert stats.open == 70 - len(started)
    for n, id in enumerate(ids, 50):
        if n not in running_then:
            assert (await counters_of(queue, id))[:2] == (0, 0)


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_handler_that_does_not_end_in_time_is_cancelled_and_its_letter_released(
    queues: Queues, how: str
) -> None:
    """After the grace time, or at once when the worker is cancelled; it counts no failure and is due at once."""
    queue = queues(shutdown_grace=0.2 if how == "stop" else 60)
    began = anyio.Event()
    cancelled: list[int] = []

    @queue.handler()
    async def handle(event: int) -> None:
        began.set()
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(event)
            raise

    id = await queue.add(7, delay=0)
    with anyio.fail_after(SOON_S):
        if how == "stop":
            async with running(queue) as worker:
                await began.wait()
            assert worker.report is not None
            assert worker.report.released == 1
        else:
            task = asyncio.create_task(queue.run())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert cancelled == [7]
    letter = await queue.get(id)
    assert letter.state is LetterState.SCHEDULED
    assert await counters_of(queue, id) == (0, 0, 1)


async def test_a_worker_that_is_cancelled_twice_still_gives_its_letters_back(queues: Queues) -> None:
    """As an impatient caller does it."""
    queue = queues(concurrency=5)
    began = anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        began.set()
        await anyio.sleep(60)

    await queue.add_many(list(range(5)), delay=0)
    task = asyncio.create_task(queue.run())
    await began.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with anyio.fail_after(SOON_S), pytest.raises(asyncio.CancelledError):
        await task
    stats = await queue.stats()
    assert (stats.leased, stats.scheduled + stats.waiting) == (0, 5)


@pytest.mark.timed(0.2)
async def test_a_stop_before_the_first_reply_ends_the_worker(queues: Queues, place: Place) -> None:
    """The server is silent from the start: the worker ends all the same."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, operation_timeout=0.5)
        await queue.open()
        proxy.silence()
        stop = anyio.Event()
        with anyio.fail_after(SOON_S):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: queue.run(stop=stop))
                await anyio.sleep(0.1)
                stop.set()
        await queue.aclose()


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
async def test_an_error_of_a_handler_that_is_being_cancelled_is_no_resolution(queues: Queues, is_async: bool) -> None:
    """What it makes of the cancellation does not resolve the letter."""
    queue = queues(shutdown_grace=0.1)
    began = anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        began.set()
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("cleaning up failed") from None

    await queue.add(1, delay=0)
    async with running(queue):
        await began.wait()
    stats = await queue.stats()
    assert (stats.open, stats.leased, stats.totals["resolved"]) == (1, 0, 0)


@pytest.mark.timed(0.2)
async def test_a_suspect_on_its_way_is_not_forgotten_by_a_stop(queues: Queues, place: Place) -> None:
    """The stop comes while the reply of its `take` is under way: the letter is given back, not left to its lease."""
    with Proxy(place.url) as proxy:
        queue, onlooker = queues(proxy.redis, shards=1, lease_seconds=2), queues(shards=1)
        queue.add_handler(lambda event: None)
        id = await queue.add({}, delay=0)
        shard = (await queue._store()).shards[0]
        await shard.take("a worker that died", 1)
        await _reclaim(queue)
        assert (await queue.stats()).suspects == 1
        stop = anyio.Event()
        proxy.max_delay_s = 0.3
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: queue.run(stop=stop))
            await eventually(lambda: _leased_or_gone(onlooker))
            stop.set()
        proxy.max_delay_s = 0
        stats = await queue.stats()
        assert stats.leased == 0
        if stats.open:
            assert (await queue.get(id)).counters.crashes == 1
        await queue.aclose()


async def _reclaim(queue: DeadLetterQueue) -> None:
    for shard in (await queue._store()).shards:
        await shard.reclaim(lease_ms=0, max_crashes=3)


async def _leased_or_gone(queue: DeadLetterQueue) -> bool:
    stats = await queue.stats()
    return bool(stats.leased) or not stats.open


# -- roles ------------------------------------------------------------------------------------------------


async def test_letters_parked_for_longer_than_retention_expire(queues: Queues) -> None:
    """Counted; the others stay."""
    queue = queues(retention_days=1 / 86_400, lease_seconds=0.6)
    ids = await queue.add_many([1, 2], delay=60)
    await queue.park(ids[0], "test")
    async with running(queue):
        await eventually(lambda: _expired(queue))
    assert [letter.id async for letter in queue.letters()] == [ids[1]]


async def _expired(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).totals["expired"] == 1


@pytest.mark.timed(0.1)
async def test_consumers_of_ended_workers_do_not_pile_up(queues: Queues) -> None:
    """A name is used once, and removed when it has been silent for twenty leases."""
    queue = queues(shards=1, lease_seconds=0.1)
    queue.add_handler(lambda event: None)
    for n in range(5):
        await queue.add(n, delay=0)
        await queue.process()
    key = (await queue._store()).shards[0].key("letters")

    def consumers() -> int:
        return len(queues.place.client.xinfo_consumers(key, "workers"))

    assert consumers() >= 5
    async with running(queue):
        await eventually(lambda: consumers() <= 1)


async def test_a_role_that_fails_starts_again(queues: Queues, caplog: pytest.LogCaptureFixture) -> None:
    """A defect of our own in a taker is logged, and the letters are run."""
    queue = queues(shards=1)
    done: list[Any] = []
    queue.add_handler(done.append)
    shard = (await queue._store()).shards[0]
    whole, failures = shard.take, iter([RuntimeError("a defect")] * 2)

    async def take(*args: Any, **how: Any) -> Any:
        for failure in failures:
            raise failure
        return await whole(*args, **how)

    shard.take = take  # type: ignore[method-assign]
    await queue.add({}, delay=0)
    with caplog.at_level(logging.ERROR):
        async with running(queue):
            await eventually(lambda: done)
    assert caplog.text.count("taker failed; it starts again") == 2


@pytest.mark.timed(0.1)
async def test_outcomes_that_cannot_be_settled_at_all_do_not_stop_the_settler(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in settling costs a second run of those letters, and nothing else."""
    queue = queues(shards=1, lease_seconds=0.6)
    ran: Counter[int] = Counter()

    @queue.handler()
    async def handle(event: int) -> None:
        ran[event] += 1

    shard = (await queue._store()).shards[0]
    whole, failures = shard.settle, iter([RuntimeError("a defect")])

    async def settle(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return await whole(*args)

    shard.settle = settle  # type: ignore[method-assign, assignment]
    await queue.add(1, delay=0)
    async with running(queue):
        await eventually(lambda: ran[1] == 2)
        await eventually(lambda: _is_empty(queue))
    assert (await queue.stats()).totals["crashed"] == 0


async def test_a_recorder_that_fails_costs_no_letter_a_second_run(
    queues: Queues, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one that is recorded as it is run, and not one whose outcome waits for Redis to come back."""

    def fail(*told: Any) -> None:
        raise ValueError("no room for metrics")

    recorder = Recorder()
    for hook in vars(Recorder):
        if not hook.startswith("_"):
            setattr(recorder, hook, fail)
    with Proxy(server.url) as proxy, caplog.at_level(logging.ERROR):
        queue = queues(proxy.url, recorder=recorder, operation_timeout=0.3, shards=1, lease_seconds=10)
        producer = queues(shards=1, lease_seconds=10)
        ran: Counter[int] = Counter()
        may_end = anyio.Event()

        @queue.handler()
        async def handle(event: int) -> None:
            ran[event] += 1
            if event == 2:
                await may_end.wait()

        async with running(queue):
            await producer.add_many([1, 2], delay=0)
            await eventually(lambda: ran[2])
            proxy.refusing = True
            proxy.reset_all()
            may_end.set()
            await eventually(lambda: "recorder: store_failed failed" in caplog.text)
            proxy.heal()
            await eventually(lambda: _is_empty(producer))
        await queue.aclose()
    assert ran == {1: 1, 2: 1}
    assert caplog.text.count("recorder: attempted failed") == 1


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


@pytest.mark.timed(0.2)
async def test_a_take_whose_reply_is_lost_is_released(queues: Queues, place: Place) -> None:
    """The heartbeat finds leases that nobody here knows of, and gives them back: no crash is counted."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1, lease_seconds=1.5)
        done: list[Any] = []
        queue.add_handler(done.append)
        async with running(queue):
            proxy.lose_replies("take", 1)
            await queue.add({}, delay=0)
            await eventually(lambda: proxy.replies_to_lose == 0)
            await eventually(lambda: done)
        totals = (await queue.stats()).totals
        assert (totals["crashed"], totals["resolved"]) == (0, 1)
        await queue.aclose()


async def test_a_take_whose_reply_is_lost_before_the_end_is_released_all_the_same(
    queues: Queues, server: Server
) -> None:
    """A worker that is told to stop has no time for two beats: its letters are due at once, no crash is counted."""
    with Proxy(server.url) as proxy:
        queue, other = queues(proxy.url, shards=1, lease_seconds=30), queues(shards=1)
        done: list[Any] = []
        queue.add_handler(done.append)
        async with running(queue) as worker:
            proxy.lose_replies("take", 1)
            await queue.add({}, delay=0)
            await eventually(lambda: proxy.replies_to_lose == 0)
            worker.stop.set()
        assert done == []
        stats = await other.stats()
        assert (stats.leased, stats.scheduled) == (0, 1)
        await queue.aclose()


async def test_a_settle_that_is_not_answered_for_long_is_not_called_stale(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """No reply comes through for longer than a call lasts: its repeat is refused, and nobody knows by whose doing."""
    records = Records()
    with Proxy(place.url) as proxy:
        queue, onlooker = queues(proxy.redis, shards=1, operation_timeout=0.3, recorder=records), queues(shards=1)
        onlooker.add_handler(lambda event: None)
        await onlooker.add({}, delay=0)
        assert (await onlooker.process()).resolved == 1  # the node knows the script
        ran: list[Any] = []
        queue.add_handler(ran.append)
        async with running(queue) as worker:
            proxy.lose_replies("settle", 1000)
            await onlooker.add({}, delay=0)
            await eventually(lambda: records.of.get("store_failed"))
            proxy.heal()
            await eventually(lambda: records.of.get("unknown_settles"))
        assert worker.report is not None
        assert (worker.report.resolved, worker.report.stale, worker.report.unknown) == (0, 0, 1)
        assert caplog.text.count("1 outcomes were settled or lost, not known which") == 1
        assert "came after their leases" not in caplog.text
        totals = (await onlooker.stats()).totals
        assert (len(ran), totals["resolved"], totals["crashed"]) == (1, 2, 0)
        await queue.aclose()


async def test_a_settle_whose_reply_is_lost_ends_the_letter_once(queues: Queues, place: Place) -> None:
    """Its repeat is refused by the fence, and the totals count one end."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1)
        ran: list[Any] = []
        queue.add_handler(ran.append)
        async with running(queue):
            proxy.lose_replies("settle", 1)
            await queue.add({}, delay=0)
            await eventually(lambda: proxy.replies_to_lose == 0)
            await eventually(lambda: _is_empty(queue))
        assert len(ran) == 1
        assert (await queue.stats()).totals["resolved"] == 1
        await queue.aclose()
