"""Handlers that are plain functions: what a worker does when their threads do not come back."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from tests.integration.conftest import Queues
from tests.support.crews import ROOT
from tests.support.holding import Records
from tests.support.places import Place
from tests.support.standstill import watched
from tests.support.waiting import SOON_S, eventually, running
from uno.event_bus.dead_letter import DeadLetterQueue, DeadLetterReason, LetterState


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What the handlers of a test wait for; set at its end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def threads_of_handlers() -> int:
    return sum(thread.name == "uno handler" for thread in threading.enumerate())


def hanging(release: threading.Event, began: list[int], done: list[int] | None = None) -> Callable[[int], None]:
    """A plain handler that hangs for longer than any timeout, until it is released."""

    def handle(event: int) -> None:
        began.append(event)
        if not release.is_set():
            assert release.wait(30)
        elif done is not None:
            done.append(event)

    return handle


@pytest.mark.timed(0.1)
async def test_a_worker_whose_threads_all_hang_takes_no_more_letters_for_them(
    queues: Queues, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """No thread more than `concurrency`; what was not started stays waiting, for others to take, with no failure.

    It is said and recorded; when the threads end, the worker goes on by itself.
    """
    caplog.set_level(logging.INFO)
    records = Records()
    queue = queues(concurrency=3, retry_delay=3600, recorder=records)
    began: list[int] = []
    done: list[int] = []
    queue.add_handler(hanging(release, began, done), timeout=0.5)
    async with running(queue):
        await queue.add_many(list(range(30)), delay=0)
        await eventually(lambda: _retried(queue, 3))
        await eventually(lambda: _none_leased(queue))
        await anyio.sleep(0.3)
        stats = await queue.stats()
        assert (len(began), stats.leased, stats.totals["retried"]) == (3, 0, 3)
        assert stats.waiting >= 20
        assert threads_of_handlers() == 3
        assert records.of["threads_left"][-1] == 3
        assert "threads: 1 of 3 are taken, the last by hanging" in caplog.text
        assert caplog.text.count("threads: all 3 are taken: no letter of a plain function is run until") == 1
        release.set()
        await eventually(lambda: len(done) == 27)
        assert records.of["threads_left"][-1] == 0
        assert "over after" in caplog.text
    assert (await queue.stats()).totals["retried"] == 3


async def _retried(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).totals["retried"] == count


async def _none_leased(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).leased == 0


@pytest.mark.timed(0.1)
async def test_handlers_that_need_no_thread_go_on_when_all_threads_hang(
    queues: Queues, release: threading.Event
) -> None:
    """Letters for the others are given back for a growing while: no failure, and other workers may come first."""
    queue = queues(concurrency=2, retry_delay=3600)
    began: list[int] = []
    done: list[int] = []
    queue.add_handler(hanging(release, began), "plain", timeout=0.1)

    @queue.handler("async")
    async def handle(event: int) -> None:
        done.append(event)

    async with running(queue):
        await queue.add_many([1, 2], type="plain", delay=0)
        await eventually(lambda: _retried(queue, 2))
        id = await queue.add(3, type="plain", delay=0)
        await queue.add_many(list(range(20)), type="async", delay=0)
        await eventually(lambda: len(done) == 20)
        await eventually(lambda: _released(queue, id, 2))
        letter = await queue.get(id)
        assert letter.counters.failures == 0
        assert letter.since_ms - (await queue.stats()).now_ms == pytest.approx(1000, abs=300)
        assert sorted(began) == [1, 2]
        release.set()
        await eventually(lambda: _gone(queue, id))


async def _released(queue: DeadLetterQueue, id: str, times: int) -> bool:
    return (await queue.get(id)).counters.releases >= times


async def _gone(queue: DeadLetterQueue, id: str) -> bool:
    return id not in {letter.id async for letter in queue.letters()}


@pytest.mark.timed(0.1)
async def test_process_returns_although_all_threads_hang_and_its_next_run_does_not_grow(
    queues: Queues, release: threading.Event
) -> None:
    """As a cron job in one process: the threads of earlier runs count until they end."""
    queue = queues(concurrency=2, retry_delay=0.001)
    began: list[int] = []
    done: list[int] = []
    queue.add_handler(hanging(release, began, done), timeout=0.3)
    await queue.add_many(list(range(10)), delay=0)
    for _ in range(3):
        with anyio.fail_after(SOON_S):
            await queue.process()
    assert len(began) == 2
    assert threads_of_handlers() == 2
    assert (await queue.stats()).leased == 0
    release.set()
    await eventually(lambda: not queue._handlers.left)

    async def all_are_run() -> bool:
        await queue.process()  # what was given back may be due a moment later
        return len(done) >= 10

    await eventually(all_are_run)
    assert sorted(done) == list(range(10))


@pytest.mark.timed(0.1)
async def test_some_threads_that_hang_leave_the_others_at_work(queues: Queues, release: threading.Event) -> None:
    """One of three hangs: letters that come to it wait, and their wait is not part of their timeout."""
    queue = queues(concurrency=3, max_retries=1)
    now = most = 0
    lock = threading.Lock()

    def work(event: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.05)
        with lock:
            now -= 1

    queue.add_handler(hanging(release, []), "hangs", timeout=0.05)
    queue.add_handler(work, "works", timeout=0.5)
    async with running(queue):
        await queue.add(0, type="hangs", delay=0)
        await eventually(lambda: _reason(queue))
        await queue.add_many(list(range(40)), type="works", delay=0)  # 20 × 0.05 s: longer than their timeout
        await eventually(lambda: _resolved(queue, 40))
    assert most == 2
    assert (await queue.stats()).totals["retried"] == 0


async def _reason(queue: DeadLetterQueue) -> bool:
    letters = [letter async for letter in queue.letters({"state": "parked"})]
    return [letter.counters.reason for letter in letters] == [DeadLetterReason.TIMEOUT]


async def _resolved(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).totals["resolved"] == count


@pytest.mark.timed(0.1)
async def test_a_thread_learns_that_its_lease_was_lost(queues: Queues, release: threading.Event) -> None:
    """It cannot be stopped, but it can ask: `anyio.from_thread.check_cancelled`, and the lease. It settles nothing."""
    queue = queues(lease_seconds=0.6, shards=1)
    began = threading.Event()
    told: list[Any] = []

    @queue.handler()
    def handle(event: Any, letter: Any) -> None:
        anyio.from_thread.check_cancelled()
        began.set()
        assert release.wait(20)
        told.append(letter.lease.still_mine())
        try:
            anyio.from_thread.check_cancelled()
        except asyncio.CancelledError:
            told.append("cancelled")

    async with running(queue) as worker:
        id = await queue.add({}, delay=0)
        await eventually(began.is_set)
        await queue.discard(id, "test")
        await eventually(lambda: queue._handlers.left)
        release.set()
        await eventually(lambda: len(told) == 2)
    assert told == [False, "cancelled"]
    assert worker.report is not None
    assert worker.report.resolved == worker.report.stale == 0


async def test_the_applications_own_threads_are_left_alone(queues: Queues) -> None:
    """The limit of anyio is what it was, and its threads are free while handlers take all of the worker's."""
    before = anyio.to_thread.current_default_thread_limiter().total_tokens
    queue = queues(concurrency=100)
    together = threading.Barrier(100, timeout=SOON_S)
    queue.add_handler(lambda event: together.wait() and None)
    await queue.add_many(list(range(100)), delay=0)
    async with running(queue):
        await eventually(lambda: _resolved(queue, 100))
        limiter = anyio.to_thread.current_default_thread_limiter()
        assert (limiter.total_tokens, limiter.borrowed_tokens) == (before, 0)


PROGRAM = """
import signal, sys, threading, time
import anyio
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Park

def hang(*_):
    print("hangs", flush=True)
    threading.Event().wait(60)

async def main():
    config = DeadLetterConfig(shards=1, shutdown_grace=0.3, lease_seconds=5)
    async with DeadLetterQueue(sys.argv[1], config) as queue:
        if sys.argv[2] == "hook":
            queue.on_parked(hang)
            queue.add_handler(park)
        else:
            queue.add_handler(hang, timeout=0.1 if sys.argv[2] == "past its timeout" else None)
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(obey, stop)
            await queue.run(stop=stop)
            group.cancel_scope.cancel()
    print("left", flush=True)

async def park(event):
    raise Park("for the hook")

async def obey(stop):
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            stop.set()

anyio.run(main)
"""


@pytest.mark.parametrize("what", ["in its grace time", "past its timeout", "hook"])
async def test_a_thread_that_hangs_does_not_keep_the_process_beyond_the_grace_time(
    queues: Queues, place: Place, what: str
) -> None:
    """SIGTERM, 0.3 s of grace, and the process is gone; its letter was given back, or had its end before."""
    queue = queues(shards=1)
    id = await queue.add({}, delay=0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))}
    process = subprocess.Popen(  # noqa: ASYNC220 - its output is read in a thread
        [sys.executable, "-c", PROGRAM, place.url, what], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "hangs\n"
        if what == "past its timeout":
            await eventually(lambda: _retried(queue, 1))
        with watched(0.2) as stood_still:
            asked_at = monotonic()
            process.send_signal(signal.SIGTERM)
            code = await anyio.to_thread.run_sync(lambda: process.wait(40))
            took_s = monotonic() - asked_at
        assert (code, process.stdout.read()) == (0, "left\n")
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
    assert took_s - stood_still.total_s < 5  # the call hangs for 60 s
    letter = await queue.get(id)
    assert letter.state is (LetterState.PARKED if what == "hook" else LetterState.SCHEDULED)
    assert letter.counters.crashes == 0
