"""Waiting for a condition, with a deadline; and workers that run while a block does."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter import DeadLetterQueue, StoreUnavailable
from uno.event_bus.dead_letter.worker.session import Report

SOON_S = 20.0
"""A bound for what takes milliseconds: only a failing test waits for it."""


async def eventually(
    check: Callable[[], Any] | Callable[[], Awaitable[Any]], *, within_s: float = SOON_S, what: str = ""
) -> Any:
    """Return the first truthy answer of `check`, sync or async; fail when none came in time."""
    deadline = monotonic() + within_s
    while True:
        answer = check()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if monotonic() > deadline:
            raise AssertionError(
                f"{what or inspect.getsource(check).strip()}: not within {within_s} s, last {answer!r}"
            )
        await anyio.sleep(0.005)


async def patiently[T](call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until its queue is not unavailable: for one whose short timeout is meant for another call."""
    with anyio.fail_after(SOON_S):
        while True:
            with suppress(StoreUnavailable):
                return await call()
            await anyio.sleep(0.005)


async def in_time(act: Callable[[], Awaitable[Any]], bound_s: float, *, tries: int = 3) -> None:
    """Do something that takes less than this; it is done again when it took longer, as on a machine that stood still.

    `act` brings about whatever it then waits for: what has come about meanwhile would be quick in any case. It returns
    the seconds that it took, or None: then it is timed.
    """
    took: list[float] = []
    while not took or took[-1] >= bound_s:
        assert len(took) < tries, f"each time it took longer than {bound_s} s: {took}"
        began = monotonic()
        said = await act()
        took.append(monotonic() - began if said is None else said)


@dataclass
class Running:
    """A worker at work."""

    stop: anyio.Event = field(default_factory=anyio.Event)
    ready: anyio.Event = field(default_factory=anyio.Event)
    report: Report | None = None
    """What it did; known after the block."""


@asynccontextmanager
async def running(queue: DeadLetterQueue) -> AsyncIterator[Running]:
    """A worker of this queue, ready; ends in order after the block."""
    worker = Running()

    async def run() -> None:
        worker.report = await queue.run(stop=worker.stop, ready=worker.ready)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(SOON_S):
            await worker.ready.wait()
        yield worker
        worker.stop.set()


@contextmanager
def running_in_a_thread(make: Callable[[], DeadLetterQueue]) -> Iterator[threading.Event]:
    """A worker on an event loop of its own, so that it lives while the test's loop is blocked.

    Yields the event that ends it before the block does.
    """
    ready, stop = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    async def main() -> None:
        queue = make()
        ended, began = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await queue.run(stop=ended, ready=began)
                group.cancel_scope.cancel()

            group.start_soon(run)
            await began.wait()
            ready.set()
            await anyio.to_thread.run_sync(stop.wait)
            ended.set()
        await queue.aclose()

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body, name="worker of a test")
    thread.start()
    try:
        assert ready.wait(SOON_S)
        yield stop
    finally:
        stop.set()
        thread.join(SOON_S)
    assert not failures, failures
