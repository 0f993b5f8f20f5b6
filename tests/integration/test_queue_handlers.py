"""Handlers: which one gets a letter, what it gets, and what becomes of the letter afterwards."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pydantic
import pytest

from tests.integration.conftest import Queues
from tests.support.look import Look
from tests.support.waiting import SOON_S, eventually, running
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterQueue,
    DeadLetterReason,
    Discard,
    Letter,
    LetterState,
    Park,
    PolicyByException,
    RetryLater,
)
from uno.event_bus.dead_letter.errors import LeaseLost


class Order(msgspec.Struct):
    number: int


class Paid(pydantic.BaseModel):
    number: int


async def the_letter(queue: DeadLetterQueue) -> Letter:
    [letter] = [letter async for letter in queue.letters()]
    return letter


# -- which ------------------------------------------------------------------------------------------------


async def test_the_most_specific_handler_gets_the_letter(queues: Queues) -> None:
    """Type and subscription, then subscription, then type, then neither."""
    queue = queues()
    got: list[tuple[str, Any]] = []
    for name, type, subscription in (
        ("both", "Order", "stock"),
        ("subscription", None, "stock"),
        ("type", "Order", None),
        ("neither", None, None),
    ):
        queue.add_handler(lambda event, name=name: got.append((name, event)), type, subscription)
    for n, (type, subscription) in enumerate(
        [("Order", "stock"), ("Paid", "stock"), ("Order", "mail"), ("Order", None), ("Paid", None), ("Paid", "mail")]
    ):
        await queue.add(n, type=type, subscription_id=subscription, delay=0)
    await queue.process()
    assert sorted(got) == [("both", 0), ("neither", 4), ("neither", 5), ("subscription", 1), ("type", 2), ("type", 3)]


async def test_handlers_can_be_removed_and_cleared(queues: Queues) -> None:
    """The next one by specificity takes over; an id is known once."""
    queue = queues()
    got: list[str] = []
    special = queue.add_handler(lambda event: got.append("special"), Order)
    queue.add_handler(lambda event: got.append("general"))
    with pytest.raises(ConfigError, match="has a handler already"):
        queue.add_handler(print, Order)
    await queue.add(Order(1), delay=0)
    await queue.process()
    assert queue.remove_handler(special)
    assert not queue.remove_handler(special)
    await queue.add(Order(2), delay=0)
    await queue.process()
    assert got == ["special", "general"]
    queue.clear_handlers()
    assert queue.handlers == []


# -- what -------------------------------------------------------------------------------------------------


async def test_a_handler_gets_the_event_as_it_annotates_it(queues: Queues) -> None:
    """Struct, pydantic model, bytes, plain objects."""
    queue = queues()
    got: list[Any] = []

    @queue.handler("struct")
    async def struct(event: Order) -> None:
        got.append(event)

    @queue.handler("model")
    async def model(event: Paid) -> None:
        got.append(event)

    @queue.handler("raw")
    async def raw(event: bytes) -> None:
        got.append(event)

    @queue.handler("plain")
    async def plain(event) -> None:
        got.append(event)

    for type in ("struct", "model", "raw", "plain"):
        await queue.add({"number": 1}, type=type, delay=0)
        await queue.process()
    assert got == [Order(1), Paid(number=1), b'{"number":1}', {"number": 1}]


async def test_a_parameter_named_letter_gets_the_letter(queues: Queues) -> None:
    """Attempt, headers, id and a lease that knows that it is held."""
    queue = queues()
    got: list[tuple[Any, ...]] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        assert letter.lease is not None
        got.append((letter.attempt, letter.id, letter.headers["region"], letter.lease.still_mine(), letter.state))
        if letter.attempt == 1:
            raise ValueError

    id = await queue.add({}, region="eu", delay=0)
    async with running(queue):
        await eventually(lambda: len(got) == 2)
    assert got == [(n, id, "eu", True, LetterState.LEASED) for n in (1, 2)]


async def test_plain_functions_run_in_threads_and_do_not_hold_up_others(queues: Queues) -> None:
    """Two that wait for each other both finish; what they return, awaitable or not, is awaited."""
    queue = queues(concurrency=2)
    both = threading.Barrier(2, timeout=SOON_S)
    threads: set[int] = set()
    awaited: list[int] = []

    async def finish() -> None:
        awaited.append(1)

    @queue.handler()
    def handle(event: Any) -> Any:
        threads.add(threading.get_ident())
        both.wait()
        return finish()

    await queue.add_many([{}, {}], delay=0)
    report = await queue.process()
    assert (report.resolved, len(awaited)) == (2, 2)
    assert threading.get_ident() not in threads


async def test_callable_objects_and_bound_methods_are_handlers(queues: Queues) -> None:
    """Their annotations count, too."""
    queue = queues()
    got: list[Any] = []

    class Shop:
        async def method(self, event: Order) -> None:
            got.append(event)

        async def __call__(self, event: Order) -> None:
            got.append(event)

    queue.add_handler(Shop().method, "a")
    queue.add_handler(Shop(), "b")
    await queue.add({"number": 1}, type="a", delay=0)
    await queue.add({"number": 2}, type="b", delay=0)
    await queue.process()
    assert sorted(got, key=lambda order: order.number) == [Order(1), Order(2)]


# -- what becomes of the letter ---------------------------------------------------------------------------


async def test_a_failing_letter_is_retried_and_then_parked_whole(queues: Queues) -> None:
    """Attempts are numbered from 1 to `max_retries`; the parked letter has them all in its history."""
    queue = queues(max_retries=3, retry_delay=0.01)
    attempts: list[int] = []

    @queue.handler(dict)
    async def handle(event: Any, letter: Letter) -> None:
        attempts.append(letter.attempt)
        raise ValueError(f"no {letter.attempt}")

    parked: list[tuple[str, str]] = []
    queue.on_parked(lambda letter, why: parked.append((letter.id, why)))
    id = await queue.add({"n": 1}, delay=0)
    async with running(queue) as worker:
        await eventually(lambda: parked)
    letter = await queue.get(id)
    assert attempts == [1, 2, 3]
    assert letter.state is LetterState.PARKED
    assert letter.payload == b'{"n":1}'
    assert (letter.counters.failures, letter.counters.reason) == (3, DeadLetterReason.HANDLER_FAILED)
    assert [(made.error_type, made.message) for made in letter.history.attempts] == [
        ("ValueError", f"no {n}") for n in attempts
    ]
    assert parked == [(id, DeadLetterReason.HANDLER_FAILED)]
    assert worker.report is not None
    assert (worker.report.retried, worker.report.parked) == (2, 1)


async def test_handlers_and_errors_have_policies_of_their_own(queues: Queues) -> None:
    """A handler's policy beats the queue's; a policy by exception picks by the error."""
    queue = queues(retry_delay=500)
    queue.set_retry_policy(PolicyByException({LookupError: None, OSError: 300}, default=100))
    fixed = queue.add_handler(_raiser(KeyError("k")), "by handler", retry=200)
    queue.add_handler(_raiser(KeyError("k")), "lookup")
    queue.add_handler(_raiser(ConnectionError()), "os")
    queue.add_handler(_raiser(ValueError()), "other")
    ids = {type: await queue.add({}, type=type, delay=0) for type in ("by handler", "lookup", "os", "other")}
    await queue.process()
    stats = await queue.stats()

    async def wait_s(type: str) -> float | None:
        letter = await queue.get(ids[type])
        return (letter.since_ms - stats.now_ms) / 1000 if letter.state is LetterState.SCHEDULED else None

    assert await wait_s("by handler") == pytest.approx(200, abs=20)
    assert await wait_s("lookup") is None
    assert await wait_s("os") == pytest.approx(300, abs=20)
    assert await wait_s("other") == pytest.approx(100, abs=20)
    queue.set_retry_policy([1], handler=fixed)
    assert queue.get_retry_policy(fixed).first_delay() == 1
    with pytest.raises(ConfigError, match="no handler has the id"):
        queue.set_retry_policy(1, handler="nobody")


def _raiser(error: BaseException) -> Callable[[Any], Any]:
    async def handle(event: Any) -> None:
        raise error

    return handle


@pytest.mark.timed(0.3)
async def test_retry_later_is_no_failure(queues: Queues) -> None:
    """However often it is asked for; it comes when it was asked for, at the earliest after 1 s."""
    queue = queues(max_retries=1)
    times: list[float] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        times.append(anyio.current_time())
        assert letter.attempt == 1
        if len(times) < 3:
            raise RetryLater(0)

    await queue.add({}, delay=0)
    async with running(queue):
        await eventually(lambda: len(times) == 3)
    assert all(0.9 < later - earlier < 2 for earlier, later in pairwise(times))


async def test_park_and_discard_decide_at_once(queues: Queues) -> None:
    """Whatever their text says: also what is no Unicode, or longer than anybody reads."""
    queue = queues()
    queue.add_handler(_raiser(Park("needs a human")), "park")
    queue.add_handler(_raiser(Discard("a test order")), "discard")
    queue.add_handler(_raiser(Discard("\ud800" * 3)), "surrogates")
    queue.add_handler(_raiser(Park("\ud800" * 100_000)), "many surrogates")
    ids = [await queue.add({}, type=type, delay=0) for type in ("park", "discard", "surrogates", "many surrogates")]
    with anyio.fail_after(SOON_S):
        report = await queue.process()
    assert (report.parked, report.discarded) == (2, 2)
    assert {letter.id async for letter in queue.letters()} == {ids[0], ids[3]}
    assert (await queue.stats()).totals["discarded"] == 2


async def test_retry_for_ends_retries(queues: Queues) -> None:
    """A retry that would come later than that after the capture is not scheduled."""
    queue = queues(retry_for=0.001, retry_delay=1)
    queue.add_handler(_raiser(ValueError()))
    await queue.add({}, delay=0)
    assert (await queue.process()).parked == 1


async def test_retry_for_counts_the_servers_time_also_where_the_shards_is_ahead(queues: Queues) -> None:
    """After a server's clock was set back by an hour, a letter of now is not an hour old."""
    queue = queues(retry_for=60, retry_delay=1, shards=1)
    queue.add_handler(_raiser(ValueError()))
    now_us = int(time.time() * 1e6)
    meta = {"clock": now_us + 3_600_000_000, "lead": 3_600_000_000}
    queues.place.client.hset((await queue._store()).shards[0].key("meta"), mapping=meta)
    await queue.add({}, delay=0)
    report = await queue.process()
    assert (report.retried, report.parked) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        GeneratorExit(),
        StopIteration("x"),
        StopAsyncIteration(),
        asyncio.CancelledError("mine"),
        BaseExceptionGroup("many", [SystemExit(), KeyError("k")]),
        ExceptionGroup("one", [ValueError("v")]),
        LeaseLost("0-1-1"),
        RuntimeError("ä" * 5_000_000),
        ValueError(b"\xff" * 1000, {"a": [1] * 1000}),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
async def test_whatever_a_handler_raises_is_a_failure_of_the_letter_alone(
    queues: Queues, error: BaseException, is_async: bool
) -> None:
    """The worker lives on, and runs the next letter."""
    queue = queues(retry_delay=30)

    async def fail(event: Any) -> None:
        raise error

    def fail_in_thread(event: Any) -> None:
        raise error

    done: list[Any] = []
    queue.add_handler(fail if is_async else fail_in_thread, "bad")
    queue.add_handler(done.append, "good")
    bad = await queue.add({}, type="bad", delay=0)
    async with running(queue) as worker:
        assert await eventually(lambda: _is_scheduled(queue, bad))
        await queue.add({}, type="good", delay=0)
        await eventually(lambda: done)
    letter = await queue.get(bad)
    assert letter.counters.failures == 1
    assert letter.history.attempts[0].error_type
    assert worker.report is not None
    assert (worker.report.retried, worker.report.resolved, worker.report.released) == (1, 1, 0)


async def _is_scheduled(queue: DeadLetterQueue, id: str) -> bool:
    return (await queue.get(id)).state is LetterState.SCHEDULED


async def test_a_handler_that_cancels_its_own_task_fails_and_costs_no_place(queues: Queues) -> None:
    """More of them than the worker has places: the next letter is run all the same."""
    queue = queues(concurrency=2, retry_delay=30)
    done: list[Any] = []

    @queue.handler("bad")
    async def bad(event: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.lowlevel.checkpoint()

    queue.add_handler(done.append, "good")
    await queue.add_many([{}] * 5, type="bad", delay=0)
    async with running(queue):
        await eventually(lambda: _all_failed(queue, 5))
        await queue.add({}, type="good", delay=0)
        await eventually(lambda: done)


@pytest.mark.parametrize("timeout", [None, 5.0], ids=["plain", "bounded"])
async def test_a_handler_that_leaves_a_cancellation_behind_harms_no_other_letter(
    queues: Queues, timeout: float | None
) -> None:
    """It cancels its task and returns: neither the next letter nor the worker gets what it asked for."""
    queue = queues(concurrency=1, retry_delay=30)
    done: list[Any] = []

    async def bad(event: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def good(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        done.append(event)

    queue.add_handler(bad, "bad", timeout=timeout)
    queue.add_handler(good, "good")
    async with running(queue) as worker:
        for n in range(5):
            await queue.add({}, type="bad", delay=0)
            await queue.add(n, type="good", delay=0)
        await eventually(lambda: len(done) == 5)
        await eventually(lambda: _is_empty(queue))
        assert worker.report is None, "the worker has ended"
    assert worker.report is not None
    assert (worker.report.resolved, worker.report.retried, worker.report.released) == (10, 0, 0)


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


async def _all_failed(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).totals["retried"] == count


async def test_an_error_that_cannot_be_printed_is_a_failure_like_any_other(queues: Queues) -> None:
    """Its ``__str__`` and ``__repr__`` raise."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    queue = queues(retry_delay=30)
    queue.add_handler(_raiser(Unprintable()))
    await queue.add({}, delay=0)
    assert (await queue.process()).retried == 1


async def test_letters_in_line_are_run_although_their_handler_is_replaced(queues: Queues) -> None:
    """One runs, others wait for it: removing the handler must not forget them, nor keep them leased for ever."""
    queue = queues(concurrency=5)
    began, release = anyio.Event(), anyio.Event()
    done: list[int] = []

    async def slow(event: int) -> None:
        began.set()
        await release.wait()
        done.append(event)

    old = queue.add_handler(slow, concurrency=1)
    await queue.add_many(list(range(5)), type="t", delay=0)
    async with running(queue):
        await began.wait()
        await anyio.sleep(0.05)
        queue.remove_handler(old)
        queue.add_handler(done.append)
        release.set()
        await eventually(lambda: sorted(done) == list(range(5)))


# -- bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
async def test_a_handler_that_runs_past_its_timeout_fails_as_timeout(queues: Queues, is_async: bool) -> None:
    """The letter follows the policy; the history says how long it ran."""
    queue = queues(max_retries=1)
    release = threading.Event()

    async def slow(event: Any) -> None:
        await anyio.sleep(60)

    def slow_in_thread(event: Any) -> None:
        release.wait(30)

    queue.add_handler(slow if is_async else slow_in_thread, timeout=0.1)
    await queue.add({}, delay=0)
    try:
        with anyio.fail_after(SOON_S):
            report = await queue.process()
    finally:
        release.set()
    letter = await the_letter(queue)
    assert report.parked == 1
    assert letter.counters.reason == DeadLetterReason.TIMEOUT
    assert 0.1 <= letter.history.attempts[0].duration_s < SOON_S


async def test_a_timeout_error_of_the_handlers_own_is_a_failure_of_the_handler(queues: Queues) -> None:
    """TIMEOUT means the engine's bound."""
    queue = queues(max_retries=1)
    queue.add_handler(_raiser(TimeoutError("upstream")), timeout=60)
    await queue.add({}, delay=0)
    await queue.process()
    assert (await the_letter(queue)).counters.reason == DeadLetterReason.HANDLER_FAILED


async def test_a_handlers_concurrency_is_kept(queues: Queues) -> None:
    """Two at a time, in a worker that runs ten; another handler is not bound by it."""
    queue = queues(concurrency=10)
    now = {"bound": 0, "free": 0}
    most = {"bound": 0, "free": 0}

    @asynccontextmanager
    async def inside(name: str) -> AsyncIterator[None]:
        now[name] += 1
        most[name] = max(most[name], now[name])
        await anyio.sleep(0.01)
        yield
        now[name] -= 1

    @queue.handler("bound", concurrency=2)
    async def bound(event: Any) -> None:
        async with inside("bound"):
            pass

    @queue.handler("free")
    async def free(event: Any) -> None:
        async with inside("free"):
            pass

    await queue.add_many([{}] * 20, type="bound", delay=0)
    await queue.add_many([{}] * 20, type="free", delay=0)
    report = await queue.process()
    assert report.resolved == 40
    assert most["bound"] == 2
    assert most["free"] > 2


@pytest.mark.parametrize(
    "bad", [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"concurrency": 0}], ids=str
)
def test_bounds_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    """At registration, not at the first letter."""
    queue = DeadLetterQueue("redis://localhost:1/0")
    with pytest.raises(ConfigError, match=r" is .*: allowed is a (whole )?number of "):
        queue.add_handler(print, **bad)


# -- hooks ------------------------------------------------------------------------------------------------


async def test_hooks_that_fail_keep_no_letter_from_being_parked_nor_the_next_hook_from_its_call(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    """What a hook raises is logged; async hooks run to their end before `process` returns."""
    queue = queues()
    queue.add_handler(_raiser(Park("no")))
    called: list[str] = []

    @queue.on_parked
    def first(letter: Letter, why: str) -> None:
        called.append("first")
        raise ValueError("hook")

    @queue.on_parked
    async def second(letter: Letter, why: str) -> None:
        await anyio.sleep(0.1)
        called.append("second")

    await queue.add({}, delay=0)
    with caplog.at_level(logging.ERROR):
        report = await queue.process()
    assert report.parked == 1
    assert sorted(called) == ["first", "second"]
    assert "on_parked hook failed" in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError("x"), SystemExit(3), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
async def test_whatever_a_hook_raises_the_worker_lives_on(
    queues: Queues, error: BaseException, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what ends tasks and processes, and a cancellation of its own task that it leaves behind."""
    queue = queues()
    done: list[Any] = []
    queue.add_handler(_raiser(Park("no")), "bad")
    queue.add_handler(done.append, "good")

    async def hook(letter: Letter, why: str) -> None:
        raise error

    def hook_in_thread(letter: Letter, why: str) -> None:
        raise error

    left_behind = anyio.Event()

    @queue.on_parked
    async def cancel(letter: Letter, why: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        left_behind.set()
        task.cancel()

    queue.on_parked(hook if is_async else hook_in_thread)
    with caplog.at_level(logging.ERROR):
        async with running(queue) as worker:
            await queue.add({}, type="bad", delay=0)
            await eventually(lambda: "on_parked hook failed" in caplog.text)
            await left_behind.wait()
            await queue.add({}, type="good", delay=0)
            await eventually(lambda: done)
            assert worker.report is None, "the worker has ended"


async def test_a_hook_that_hangs_does_not_hold_up_the_end(queues: Queues) -> None:
    """It gets the grace time, and is cancelled then."""
    queue = queues(shutdown_grace=0.2)
    queue.add_handler(_raiser(Park("no")))
    began = anyio.Event()

    @queue.on_parked
    async def hang(letter: Letter, why: str) -> None:
        began.set()
        await anyio.sleep(60)

    await queue.add({}, delay=0)
    with anyio.fail_after(SOON_S):
        await queue.process()
    assert began.is_set()


# -- letters that no handler gets -------------------------------------------------------------------------


@pytest.mark.timed(0.1)
async def test_a_letter_without_a_handler_comes_back_at_growing_intervals_until_somebody_has_one(
    queues: Queues,
) -> None:
    """It is released, not failed, and run when the handler is there."""
    queue = queues()
    queue.add_handler(lambda event: None, "other")
    id = await queue.add({}, delay=0)
    async with running(queue):
        await eventually(lambda: _is_scheduled(queue, id))
        letter = await queue.get(id)
        assert letter.since_ms - (await queue.stats()).now_ms == pytest.approx(500, abs=300)
        await eventually(lambda: _released(queue, id, 2))
        letter = await queue.get(id)
        assert letter.since_ms - (await queue.stats()).now_ms == pytest.approx(1000, abs=300)
        done: list[Any] = []
        queue.add_handler(done.append)
        await eventually(lambda: done)
    assert (await queue.stats()).totals["retried"] == 0


async def _released(queue: DeadLetterQueue, id: str, times: int) -> bool:
    return (await queue.get(id)).counters.releases == times


async def test_a_letter_that_nobody_handles_is_parked_in_the_end(queues: Queues) -> None:
    """After `unhandled_after`, counted from when a worker first found no handler."""
    queue = queues(unhandled_after=0.3)
    await queue.add({}, delay=0)
    assert (await queue.process()).released == 1
    async with running(queue):
        await eventually(lambda: _is_parked(queue))
    letter = await the_letter(queue)
    assert (letter.counters.reason, letter.counters.failures) == (DeadLetterReason.UNHANDLED, 0)


async def _is_parked(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).parked == 1


async def test_a_parked_unhandled_letter_is_run_after_a_redrive(queues: Queues) -> None:
    """Even if another one handled it before: the time without a handler starts anew."""
    queue = queues(unhandled_after=0)
    id = await queue.add({}, delay=0)
    assert (await queue.process()).parked == 1
    done: list[Any] = []
    handler = queue.add_handler(done.append)
    await queue.retry(id)
    await queue.process()
    assert done
    assert queue.remove_handler(handler)


# -- entries of others ------------------------------------------------------------------------------------


@pytest.fixture
def look(queues: Queues, new_shard: Any) -> Look:
    """The first shard of a queue that has one."""
    return Look(queues.place.client, new_shard())


async def test_a_plain_xadd_from_anywhere_is_a_letter(queues: Queues, look: Look) -> None:
    """Fields are found by name; a type picks the handler; without content type it is JSON."""
    queue = queues(shards=1)
    got: list[Any] = []

    @queue.handler("order")
    async def handle(event: Order, letter: Letter) -> None:
        got.append((event, letter.event_id, letter.version, letter.headers))

    await queue.open()
    look.foreign({"payload": b'{"number":7}', "type": "order", "x-other": "kept"})
    await queue.process()
    assert got == [(Order(7), "", 0, {})]


async def test_an_entry_without_payload_is_parked_with_its_bytes(queues: Queues, look: Look) -> None:
    """INVALID_EVENT, no failure counted, fields as they were."""
    queue = queues(shards=1)
    queue.add_handler(lambda event: None)
    await queue.open()
    id = look.foreign({"what": b"\x00\xff", "type": "order"})
    assert (await queue.process()).parked == 1
    letter = await queue.get(id)
    assert (letter.counters.reason, letter.counters.failures) == (DeadLetterReason.INVALID_EVENT, 0)
    assert look.fields(id) == [b"what", b"\x00\xff", b"type", b"order"]


@pytest.mark.parametrize(
    "payload", [b"{", b"\xff\xfe", b'{"number":"x"}', b"[" * 100_000, b""], ids=lambda p: repr(p[:8])
)
async def test_a_payload_that_cannot_be_decoded_is_parked_at_once(queues: Queues, payload: bytes) -> None:
    """INVALID_EVENT, bytes intact: time does not heal them."""
    queue = queues()

    @queue.handler()
    async def handle(event: Order) -> None:
        raise AssertionError("never called")

    id = await queue.add(payload, delay=0, type="Order")
    look = Look(queues.place.client, (await queue._store()).shards[int(id[0])])
    entry = look.fields(id)
    assert entry[entry.index(b"payload") + 1] == payload
    assert (await queue.process()).parked == 1
    letter = await queue.get(id)
    assert (letter.counters.reason, letter.payload) == (DeadLetterReason.INVALID_EVENT, payload)


async def test_a_letter_of_a_later_format_is_left_to_later_workers(queues: Queues, look: Look) -> None:
    """Released for a minute, however often it is seen; no handler gets it."""
    queue = queues(shards=1)
    queue.add_handler(_raiser(AssertionError("never called")))
    await queue.open()
    id = look.foreign({"v": "2", "payload": "{}"})
    assert (await queue.process()).released == 1
    letter = await queue.get(id)
    assert letter.state is LetterState.SCHEDULED
    assert 40_000 < letter.since_ms - (await queue.stats()).now_ms <= 60_000


STRANGE_FIELDS: list[dict[str, Any]] = [
    {"v": "abc"},
    {"v": ""},
    {"v": "-1"},
    {"v": "9" * 5000},
    {"v": b"\xff"},
    {"type": b"\xff\xfe", "subscription": b"\x00"},
    {"headers": "no json"},
    {"headers": "[1,2]"},
    {"headers": b"\xff"},
    {"headers": "[" * 100_000},
    {"attempts": "9" * 5000},
    {"failed_at": "inf"},
    {"not_before": "inf"},
    {"not_before": "nan"},
    {"not_before": "-inf"},
    {"not_before": "1e308"},
    {"not_before": "0x10"},
    {"not_before": "soon"},
    {"fingerprint": "f", "event_id": b"\xff", "ordering_key": "\0"},
    {"content_type": b"\xff"},
    {"content_type": "application/json; charset=latin-1"},
    {"encoding": "zstd"},
    {"payload": b""},
]


@pytest.mark.parametrize(
    "fields", STRANGE_FIELDS, ids=lambda fields: ",".join(f"{k}={str(v)[:8]}" for k, v in fields.items())
)
async def test_nothing_in_an_entry_stops_a_worker(queues: Queues, look: Look, fields: dict[str, Any]) -> None:
    """The entry is run, parked or kept for later; the letter after it is run; browsing shows both."""
    queue = queues(shards=1, retry_delay=30)
    done: list[str] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        done.append(letter.id)
        shown = (letter.version, letter.headers, letter.type, letter.subscription, letter.caller_attempts)
        assert shown is not None
        assert (letter.failed_at_ms, letter.not_before_ms, letter.fingerprint, letter.ordering_key) is not None

    await queue.open()
    strange = look.foreign({"payload": "{}", **fields})
    async with running(queue):
        good = await queue.add({}, delay=0)
        await eventually(lambda: good in done)
        await eventually(lambda: _nothing_leased(queue))
        [letter async for letter in queue.letters()]
        stats = await queue.stats()
    assert strange in done or stats.parked or stats.scheduled == 1
    await queue.discard(strange, "test") if stats.open else None


async def _nothing_leased(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).leased == 0
