"""Leases: kept as long as a handler runs, given up in time when they cannot be kept, and never settled after that."""

import asyncio
import threading
import time
from collections import Counter
from time import monotonic
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.look import Look
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.waiting import SOON_S, eventually, running, running_in_a_thread
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Letter
from uno.event_bus.dead_letter.worker import assignment
from uno.event_bus.dead_letter.worker.reclaimer import Reclaimer

pytestmark = pytest.mark.timed(0.1)
"""Leases of half a second are kept, and lost at their time."""


async def resolved(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).totals["resolved"] == count


async def test_a_handler_that_runs_for_six_leases_runs_once(queues: Queues) -> None:
    """On the loop or in a thread: heartbeats keep it from a second worker, which looks for work all the time."""
    lease_s = 0.6
    one, two = queues(lease_seconds=lease_s), queues(lease_seconds=lease_s)
    runs: list[str] = []

    async def slow(event: Any) -> None:
        runs.append("async")
        await anyio.sleep(6 * lease_s)

    def slow_in_thread(event: Any) -> None:
        runs.append("thread")
        time.sleep(6 * lease_s)

    for queue in (one, two):
        queue.add_handler(slow, "async")
        queue.add_handler(slow_in_thread, "thread")
    async with running(one), running(two):
        await one.add({}, type="async", delay=0)
        await one.add({}, type="thread", delay=0)
        await eventually(lambda: resolved(one, 2))
    totals = (await one.stats()).totals
    assert sorted(runs) == ["async", "thread"]
    assert (totals["crashed"], totals["released"], totals["lost_externally"]) == (0, 0, 0)


async def test_letters_that_wait_here_for_a_slot_keep_their_leases(queues: Queues) -> None:
    """Taken ahead, and held for many leases before their handler starts: each runs once, here or elsewhere."""
    one, two = queues(lease_seconds=0.6, concurrency=1), queues(lease_seconds=0.6, concurrency=1)
    runs: Counter[int] = Counter()

    @one.handler("slow")
    @two.handler("slow")
    async def slow(event: int) -> None:
        runs[event] += 1
        await anyio.sleep(0.4)

    one.add_handler(lambda event: None, "quick")
    await one.add_many([0] * 200, type="quick", delay=0)
    async with running(one):
        await eventually(lambda: resolved(one, 200))
        await one.add_many(list(range(8)), type="slow", delay=0)
        async with running(two):
            await eventually(lambda: resolved(one, 208))
    assert runs == Counter(range(8))
    assert (await one.stats()).totals["crashed"] == 0


async def test_a_handler_whose_heartbeat_is_cut_is_cancelled_before_another_worker_starts(
    queues: Queues, place: Place
) -> None:
    """Only the heartbeats' lane falls silent: everything else of that worker goes on, and that must not help it.

    Nor does it take letters that it could not keep: all that comes later is run by the other.
    """
    at: dict[tuple[str, int, str], float] = {}
    lease_s = 1.0

    def handler(name: str) -> Any:
        async def handle(event: int) -> None:
            at.setdefault((name, event, "start"), monotonic())
            try:
                await anyio.sleep(60 if name == "cut" else 0)
            finally:
                at.setdefault((name, event, "end"), monotonic())

        return handle

    with Proxy(place.url) as proxy:
        cut, whole = queues(proxy.redis, lease_seconds=lease_s, shards=1), queues(lease_seconds=lease_s, shards=1)
        cut.add_handler(handler("cut"))
        whole.add_handler(handler("whole"))
        async with running(cut) as worker:
            await cut.add(0, delay=0)
            await eventually(lambda: at)
            cut_at = monotonic()
            proxy.silence("extend")
            async with running(whole):
                await eventually(lambda: resolved(whole, 1))
                await whole.add_many(list(range(1, 31)), delay=0)
                await eventually(lambda: resolved(whole, 31))
        assert at["cut", 0, "end"] < at["whole", 0, "start"] < cut_at + 4 * lease_s
        assert {event for name, event, _ in at if name == "cut"} == {0}
        assert worker.report is not None
        assert worker.report.resolved == 0
        await cut.aclose()
    assert (await whole.stats()).totals["crashed"] == 1


async def test_a_lease_is_renewed_every_third_of_its_length(queues: Queues) -> None:
    """So that one late beat loses nothing."""
    lease_s = 1.5
    queue = queues(lease_seconds=lease_s, shards=1)
    key = (await queue._store()).shards[0].key("letters")
    began, release = anyio.Event(), anyio.Event()

    @queue.handler()
    async def handle(event: Any) -> None:
        began.set()
        await release.wait()

    oldest_s = 0.0
    async with running(queue):
        await queue.add({}, delay=0)
        await began.wait()
        until = monotonic() + 2 * lease_s
        while monotonic() < until:
            [row] = queues.place.client.xpending_range(key, "workers", "-", "+", 1)
            oldest_s = max(oldest_s, row["time_since_delivered"] / 1000)
            await anyio.sleep(0.01)
        release.set()
    assert 0.2 * lease_s < oldest_s < 0.6 * lease_s


async def test_short_silences_of_the_heartbeats_keep_the_lease(queues: Queues, place: Place) -> None:
    """A quarter of a lease long, at any moment: the next beat comes in time. So does a beat whose reply is lost."""
    lease_s = 1.6
    with Proxy(place.url) as proxy:
        queue, other = queues(proxy.redis, lease_seconds=lease_s, shards=1), queues(lease_seconds=lease_s, shards=1)
        runs: list[int] = []

        @queue.handler()
        @other.handler()
        async def handle(event: int) -> None:
            runs.append(event)
            await anyio.sleep(4 * lease_s)

        async with running(queue):
            await queue.add(1, delay=0)
            await eventually(lambda: runs)
            async with running(other):  # it would take over
                for n in range(4):
                    proxy.silence("extend")
                    await anyio.sleep(lease_s / 4)
                    proxy.heal()
                    await anyio.sleep(lease_s * (0.35 + 0.1 * n))
                proxy.lose_replies("extend", 1)
                await eventually(lambda: proxy.replies_to_lose == 0)
                await eventually(lambda: resolved(queue, 1))
        assert runs == [1]
        await queue.aclose()
    assert (await other.stats()).totals["crashed"] == 0


async def test_a_node_whose_clock_is_ahead_of_the_others_gets_its_letters_back(queues: Queues) -> None:
    """What this process knows of the time it knows from other nodes as well; a lease ages by its own node's clock."""
    queue = queues(lease_seconds=0.6, shards=1)
    await queue.add({}, delay=0)
    session = await queue._session()
    now_ms = session.clock.now_ms
    session.clock.now_ms = lambda: now_ms() - 60_000  # type: ignore[method-assign]  # another node was heard last
    shard = session.store.shards[0]
    await shard.take("a worker that died", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(Reclaimer(session, shard, lambda: None).run)
        await eventually(lambda: _has_suspects(queue, 1))
        group.cancel_scope.cancel()


async def test_a_suspect_runs_although_handlers_outlast_leases_and_there_is_always_more(queues: Queues) -> None:
    """A worker that is never empty within a lease waits longer each time: no backlog keeps a suspect back for ever."""
    lease_s = 0.4
    queue = queues(lease_seconds=lease_s, shards=1, concurrency=4, batch_size=1)
    ran: list[str] = []

    @queue.handler("slow")
    async def slow(event: float) -> None:
        await anyio.sleep(event * lease_s)

    queue.add_handler(ran.append, "suspect")
    await queue.add("suspect", type="suspect", delay=0)
    shard = (await queue._store()).shards[0]
    await shard.take("a worker that died", 1)
    Look(queues.place.client, shard).age(60_000)
    await shard.reclaim(lease_ms=1000, max_crashes=3)
    assert await _has_suspects(queue, 1)
    await queue.add_many([1.5, 2.1, 2.9, 3.3] * 60, type="slow", delay=0)
    async with running(queue) as worker:
        await eventually(lambda: ran)
        assert (await queue.stats()).open > 40, "the backlog has ended first"
        worker.stop.set()


async def _has_suspects(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).suspects == count


async def test_a_new_worker_takes_nothing_back_before_it_was_in_touch_for_a_lease(queues: Queues) -> None:
    """After an outage leases look old that nobody had a chance to renew: who has just come cannot know."""
    lease_s = 1.0
    queue = queues(lease_seconds=lease_s, shards=1)
    queue.add_handler(lambda event: None)
    await queue.add({}, delay=0)
    shard = (await queue._store()).shards[0]
    await shard.take("another worker", 1)
    look = Look(queues.place.client, shard)
    look.age(60_000)
    began = monotonic()
    async with running(queue):
        await eventually(lambda: resolved(queue, 1))
        took = monotonic() - began
    assert took > lease_s
    assert (await queue.stats()).totals["crashed"] == 1


@pytest.mark.parametrize("grown", [False, True], ids=["from the start", "of a growth"])
async def test_a_worker_takes_back_leases_of_shards_that_others_serve(
    queues: Queues, monkeypatch: pytest.MonkeyPatch, grown: bool
) -> None:
    """Where workers die one after the other, those that serve a shard may all have come within the last lease."""
    monkeypatch.setattr(assignment, "shares", lambda workers, shards: dict.fromkeys(workers, frozenset({0})))
    queue = queues(lease_seconds=0.6, shards=1 if grown else 2)
    ran: list[str] = []
    queue.add_handler(ran.append)
    async with running(queue):
        if grown:
            await queue.reshard(2)
        await queue.add_many(["of a dead worker"] * 20, delay=0)
        unserved = (await queue._store()).shards[1]
        leased = (await unserved.take("a worker that died", 100)).letters
        assert leased
        Look(queues.place.client, unserved).age(60_000)
        await eventually(lambda: _has_suspects(queue, len(leased)))
        await eventually(lambda: len(ran) == 20 - len(leased))  # and it runs none of those that it does not serve


async def test_a_flood_of_commands_does_not_delay_heartbeats(queues: Queues, place: Place) -> None:
    """Two hundred callers wait for the connections of a slow network: heartbeats have their own."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, lease_seconds=1.2, concurrency=5, shards=1, operation_timeout=10)
        runs: list[int] = []

        @queue.handler("slow")
        async def slow(event: int) -> None:
            runs.append(event)
            await anyio.sleep(3)

        async with running(queue):
            await queue.add(1, type="slow", delay=0)
            await eventually(lambda: runs)
            proxy.max_delay_s = 0.1
            until = monotonic() + 2.4

            async def flood() -> None:
                while monotonic() < until:
                    await queue.add({}, type="other", delay=60)

            async with anyio.create_task_group() as group:
                for _ in range(200):
                    group.start_soon(flood)
            proxy.max_delay_s = 0
            await eventually(lambda: resolved(queue, 1))
        assert runs == [1]
        assert (await queue.stats()).totals["crashed"] == 0
        await queue.aclose()


async def test_a_blocked_event_loop_loses_its_letters_and_settles_none_of_them(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocked for three leases: another worker takes over; what the blocked one says later changes nothing.

    It says so while the other one still runs the letter, and only then that one may end it.
    """
    lease_s = 1.0
    config = DeadLetterConfig(shards=1, lease_seconds=lease_s, retry_delay=0.02)
    queue = queues(lease_seconds=lease_s, shards=1)
    by: list[str] = []
    began, go, release = anyio.Event(), anyio.Event(), threading.Event()

    @queue.handler()
    async def block(event: Any) -> None:
        by.append("blocked")
        began.set()
        await go.wait()
        time.sleep(3 * lease_s)  # noqa: ASYNC251 - the fault

    def other() -> DeadLetterQueue:
        made = DeadLetterQueue(place.url, config)

        def wait(event: object) -> None:
            by.append("other")
            release.wait(20)

        made.add_handler(wait)
        return made

    async with running(queue) as worker:
        await queue.add({}, delay=0)
        await began.wait()
        with running_in_a_thread(other):
            await anyio.sleep(lease_s)  # a reclaimer acts after a lease in touch
            go.set()
            await eventually(lambda: "outcomes came after their leases were over" in caplog.text)
            assert "event loop was blocked" in caplog.text
            await eventually(lambda: len(by) == 2)
            stats = await queue.stats()
            assert (stats.leased, stats.totals["resolved"]) == (1, 0)
            release.set()
            await eventually(lambda: resolved(queue, 1))
    assert by == ["blocked", "other"]
    assert worker.report is not None
    assert (worker.report.resolved, worker.report.stale) == (0, 1)
    assert (await queue.stats()).totals["crashed"] == 1


async def test_a_letter_discarded_under_its_handler_ends_there(queues: Queues) -> None:
    """The handler is cancelled with the next heartbeat, or settles nothing."""
    queue = queues(lease_seconds=0.6, shutdown_grace=0)
    began, ended = anyio.Event(), anyio.Event()

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        began.set()
        try:
            await anyio.sleep(60)
        finally:
            if letter.lease is not None and not letter.lease.still_mine():
                ended.set()

    async with running(queue):
        id = await queue.add({}, delay=0)
        await began.wait()
        await queue.discard(id, "test")
        with anyio.fail_after(SOON_S):
            await ended.wait()
        began = anyio.Event()
        await queue.add({}, delay=0)
        with anyio.fail_after(SOON_S):
            await began.wait()  # the slot lives
    totals = (await queue.stats()).totals
    assert (totals["discarded"], totals["resolved"], totals["retried"]) == (1, 0, 0)


@pytest.mark.parametrize("ends", ["swallows", "ends at that moment", "raises"])
async def test_the_cancellation_of_a_lost_letter_never_reaches_the_next_one(queues: Queues, ends: str) -> None:
    """However its handler takes it: the next letter in that slot runs to its end, and is not kept for ever."""
    queue = queues(lease_seconds=0.6, concurrency=1, shards=1)
    began, wake = anyio.Event(), anyio.Event()
    done: list[int] = []

    @queue.handler("lost")
    async def lost(event: Any, letter: Letter) -> None:
        began.set()
        try:
            await wake.wait()
        except asyncio.CancelledError:
            if ends == "raises":
                raise ValueError("on my way out") from None
            if ends != "swallows":
                raise

    @queue.handler("next")
    async def following(event: int) -> None:
        await anyio.sleep(0.05)
        done.append(event)

    session = await _session_of(queue)
    async with running(queue):
        await queue.add({}, type="lost", delay=0)
        await began.wait()
        await queue.add_many([1, 2, 3], type="next", delay=0)
        [held] = session[0].holdings.all()
        if ends == "ends at that moment":
            wake.set()
        session[0].holdings.lose(held)
        await queue.discard(held.letter.id, "test")
        await eventually(lambda: done == [1, 2, 3])


async def _session_of(queue: DeadLetterQueue) -> list[Any]:
    """The session of the next run: the only way to a lease that is lost at a given moment."""
    sessions: list[Any] = []
    make = queue._session

    async def remember(*args: Any, **how: Any) -> Any:
        sessions.append(await make(*args, **how))
        return sessions[-1]

    queue._session = remember  # type: ignore[method-assign]
    return sessions


async def test_a_lease_taken_by_a_stranger_is_given_up(queues: Queues) -> None:
    """XCLAIM by hand: the heartbeat hears of it and cancels; the letter runs again when that lease runs out."""
    queue = queues(lease_seconds=0.6, shards=1)
    runs: list[int] = []

    @queue.handler()
    async def handle(event: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            await anyio.sleep(60)

    async with running(queue):
        id = await queue.add({}, delay=0)
        await eventually(lambda: runs)
        key = (await queue._store()).shards[0].key("letters")
        queues.place.client.xclaim(key, "workers", "a stranger", 0, [id.partition("-")[2]])
        await eventually(lambda: resolved(queue, 1))
    assert len(runs) == 2
    assert (await queue.stats()).totals["crashed"] == 1


async def test_xack_and_xdel_by_a_stranger_are_survived(queues: Queues) -> None:
    """An XACK makes the letter an orphan, which repair brings back; an XDEL is counted as lost."""
    queue = queues(lease_seconds=0.6, shards=1)
    runs: Counter[str] = Counter()

    @queue.handler()
    async def handle(event: str) -> None:
        runs[event] += 1
        if runs[event] == 1:
            await anyio.sleep(60)

    async with running(queue):
        acked = await queue.add("acked", delay=0)
        deleted = await queue.add("deleted", delay=0)
        await eventually(lambda: len(runs) == 2)
        key = (await queue._store()).shards[0].key("letters")
        queues.place.client.xack(key, "workers", acked.partition("-")[2])
        queues.place.client.xdel(key, deleted.partition("-")[2])
        queues.lost_externally = 1
        await eventually(lambda: resolved(queue, 1))
        await eventually(lambda: _lost(queue))
    assert runs == Counter({"acked": 2, "deleted": 1})


async def _lost(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).totals["lost_externally"] == 1
