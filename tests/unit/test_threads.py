"""Threads: so many calls at a time, those that nobody waits for any more included."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest

from tests.support.waiting import SOON_S, eventually
from uno.event_bus.dead_letter.worker import threads as module
from uno.event_bus.dead_letter.worker.threads import Threads


class Hanging:
    """A function that does not end before it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.began = 0
        self.ended = 0

    def __call__(self) -> str:
        self.began += 1
        assert self.release.wait(SOON_S)
        self.ended += 1
        return "late"


@pytest.fixture
def hang() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.release.set()


class Notes(list[tuple[str, int]]):
    """What is told of calls that were left."""

    def __call__(self, name: str, left: int) -> None:
        self.append((name, left))


async def call(threads: Threads, fn: Callable[[], Any], *, within_s: float | None = None) -> Any:
    """Take a place and call; "no place" when there is none to wait for, "too late" when it took too long."""
    place = await threads.place("h")
    if place is None:
        return "no place"
    with place, anyio.move_on_after(within_s):
        return await place.run(fn)
    return "too late"


async def test_a_call_answers_or_raises_what_the_function_does() -> None:
    """In another thread, which is used again; also what no future may carry."""

    class Odd(BaseException):
        pass

    def fail(error: BaseException) -> None:
        raise error

    async with Threads(2, set(), Notes()) as threads:
        idents = {await call(threads, threading.get_ident) for _ in range(5)}
        assert len(idents) == 1 and threading.get_ident() not in idents
        for error in (ValueError("v"), Odd(), SystemExit(1), GeneratorExit()):
            with pytest.raises(type(error)):
                await call(threads, partial(fail, error))
        assert await call(threads, lambda: 7) == 7


async def test_so_many_calls_run_and_the_next_ones_wait() -> None:
    """Each gets its turn."""
    now = most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    async with Threads(3, set(), Notes()) as threads, anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(call, threads, work)
    assert most == 3


async def test_a_call_that_outlives_its_caller_keeps_its_place(hang: Hanging) -> None:
    """When all places are taken so, nobody waits for one; when such a call ends, its place and its thread are free."""
    notes = Notes()
    async with Threads(2, set(), notes) as threads:
        assert await call(threads, hang, within_s=0.01) == "too late"
        assert await call(threads, lambda: 1) == 1  # there is another place
        assert not threads.are_all_left
        assert await call(threads, hang, within_s=0.01) == "too late"
        assert threads.are_all_left
        assert [await call(threads, lambda: 1) for _ in range(5)] == ["no place"] * 5
        assert notes == [("h", 1), ("h", 2)]
        hang.release.set()
        await eventually(lambda: len(notes) == 4)
        assert notes[-1] == ("", 0)
        assert await call(threads, lambda: 1) == 1
        assert hang.ended == 2
        assert sum(thread.name == "uno handler" for thread in threading.enumerate()) <= 2


@pytest.mark.timed(0.2)
async def test_who_waits_for_a_place_hears_that_none_will_come(hang: Hanging) -> None:
    """The one call that runs outlives its caller meanwhile."""
    answers: list[Any] = []

    async def ask(within_s: float | None, fn: Callable[[], Any]) -> None:
        answers.append(await call(threads, fn, within_s=within_s))

    with anyio.fail_after(0.9):  # at once, not when it looks again by itself
        async with Threads(1, set(), Notes()) as threads, anyio.create_task_group() as group:
            group.start_soon(ask, 0.05, hang)
            await eventually(lambda: hang.began)
            group.start_soon(ask, None, lambda: 1)
    assert sorted(answers) == ["no place", "too late"]


async def test_calls_that_others_have_left_count_too(hang: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a queue's workers share them: one that is made anew each minute does not grow by its threads.

    Also those of an event loop that is gone, whose end wakes nobody.
    """
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    left: set[Any] = set()

    def leave_one() -> None:
        async def main() -> None:
            async with Threads(2, left, Notes()) as threads:
                assert await call(threads, hang, within_s=0.01) == "too late"

        asyncio.run(main())

    await anyio.to_thread.run_sync(leave_one)
    assert len(left) == 1
    async with Threads(1, left, Notes()) as threads:
        assert threads.are_all_left
        assert await call(threads, lambda: 1) == "no place"
    async with Threads(2, left, Notes()) as threads, anyio.create_task_group() as group:
        place = await threads.place("h")
        assert place is not None
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await call(threads, lambda: 1))

        group.start_soon(ask)
        await anyio.sleep(0.03)
        assert answers == []
        hang.release.set()
        await eventually(lambda: answers == [1])
        with place:
            pass
    assert not left


@pytest.mark.timed(0.03)
async def test_a_call_that_ends_as_it_is_left_is_not_left() -> None:
    """The thread is done and its result is on its way: it must not be counted for ever."""
    notes = Notes()
    left: set[Any] = set()
    async with Threads(1, left, notes) as threads:
        loop, scope = asyncio.get_running_loop(), anyio.CancelScope()

        def end_and_block() -> None:
            loop.call_soon_threadsafe(block)
            loop.call_soon_threadsafe(scope.cancel)

        def block() -> None:
            time.sleep(0.1)  # meanwhile the call ends

        place = await threads.place("h")
        assert place is not None
        with place, scope:
            await place.run(end_and_block)
        assert scope.cancelled_caught
        assert not left and not notes
        assert await call(threads, lambda: 1) == 1


async def test_a_place_that_is_not_used_is_free_again() -> None:
    """The bytes could not be decoded, say."""
    async with Threads(1, set(), Notes()) as threads:
        for _ in range(3):
            with pytest.raises(ValueError, match="bytes"), await threads.place("h"):  # type: ignore[union-attr]
                raise ValueError("bytes")
        assert await call(threads, lambda: 1) == 1


async def test_functions_in_threads_can_call_back_and_ask_whether_they_were_cancelled(hang: Hanging) -> None:
    """As in threads of anyio's; and they see the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("the caller's")
    told: list[Any] = []

    async def later(n: int) -> int:
        await anyio.sleep(0.001)
        return n + 1

    def work() -> None:
        told.append(variable.get())
        told.append(anyio.from_thread.run(later, 1))
        told.append(anyio.from_thread.run_sync(threading.get_ident) == ident)
        anyio.from_thread.check_cancelled()
        hang()
        try:
            anyio.from_thread.check_cancelled()
        except asyncio.CancelledError:
            told.append("cancelled")

    ident = threading.get_ident()
    async with Threads(1, set(), Notes()) as threads:
        async with anyio.create_task_group() as caller:
            caller.start_soon(call, threads, work)
            await eventually(lambda: hang.began)
            caller.cancel_scope.cancel()
        hang.release.set()
        await eventually(lambda: len(told) == 4)
    assert told == ["the caller's", 2, True, "cancelled"]


async def test_a_function_in_a_thread_may_run_an_event_loop_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with sniffio, which would see the caller's in the context variables."""
    running: contextvars.ContextVar[str | None] = contextvars.ContextVar("running", default="asyncio")

    class Sniffio:
        current_async_library_cvar = running

    monkeypatch.setitem(module.sys.modules, "sniffio", Sniffio())  # type: ignore[attr-defined]

    async def main() -> int:
        return 7

    async with Threads(1, set(), Notes()) as threads:
        assert await call(threads, lambda: (running.get(), asyncio.run(main()))) == (None, 7)


def _threads_of_handlers() -> int:
    return sum(thread.name == "uno handler" for thread in threading.enumerate())


async def test_threads_end_with_their_worker_and_keep_no_process_alive(hang: Hanging) -> None:
    """Those that were idle at once, one that hangs when it has ended; none of them is waited for at exit."""
    await eventually(lambda: not _threads_of_handlers())
    together = threading.Barrier(4, timeout=SOON_S)
    async with Threads(5, set(), Notes()) as threads:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(call, threads, together.wait)
        await call(threads, hang, within_s=0.01)
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "uno handler")
        assert _threads_of_handlers() >= 4
    await eventually(lambda: _threads_of_handlers() == 1)
    hang.release.set()
    await eventually(lambda: not _threads_of_handlers())


async def test_threads_that_only_a_rush_needed_end_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten at once, then one after another: one is enough."""
    await eventually(lambda: not _threads_of_handlers())
    now = time.monotonic()
    together = threading.Barrier(10, timeout=SOON_S)
    monkeypatch.setattr(module, "monotonic", lambda: now)
    async with Threads(10, set(), Notes()) as threads:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(call, threads, together.wait)
        assert _threads_of_handlers() == 10
        now += 11
        for _ in range(3):
            await call(threads, lambda: 1)
        await eventually(lambda: _threads_of_handlers() == 1)
