"""Load: a worker at work and a producer, in this process, while a test does its worst."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import anyio

from tests.support.standstill import watched
from tests.support.waiting import SOON_S, eventually, running
from uno.event_bus.dead_letter import DeadLetterError, DeadLetterQueue

RESUMES_S = 5.0
"""Work goes on within this long after healing."""


class Load:
    """A worker at work, and a producer that captures one event after another and knows which were acknowledged."""

    def __init__(self, worker: DeadLetterQueue, producer: DeadLetterQueue) -> None:
        self.worker, self.producer = worker, producer
        self.acknowledged: set[int] = set()
        self.ran: Counter[int] = Counter()
        self.errors: list[DeadLetterError] = []
        self._numbers = itertools.count()
        self._producing = True
        self._has_ended = anyio.Event()
        worker.add_handler(self._handle)

    async def _handle(self, event: int) -> None:
        self.ran[event] += 1
        await anyio.sleep(0.001)

    async def produce(self) -> None:
        while self._producing:
            number = next(self._numbers)
            while True:
                try:
                    await self.producer.add(number, event_id=str(number), delay=0)
                except DeadLetterError as error:  # the outcome may be unknown: again, with the same event id
                    self.errors.append(error)
                    await anyio.sleep(0.02)
                else:
                    self.acknowledged.add(number)
                    break
            await anyio.sleep(0.002)
        self._has_ended.set()

    async def end(self) -> None:
        """Produce no more; return when the last capture has been acknowledged: no try of it can come later."""
        self._producing = False
        with anyio.fail_after(SOON_S):
            await self._has_ended.wait()

    async def resumed(self) -> float:
        """Wait until a letter that was captured from now on has been run; return the seconds that took.

        Those in which the machine stood still are left out.
        """
        began = monotonic()
        number = next(self._numbers)
        with watched(0.2) as stood_still:
            while True:
                try:
                    await self.producer.add(number, event_id=str(number), delay=0)
                    break
                except DeadLetterError:
                    await anyio.sleep(0.02)
            self.acknowledged.add(number)
            await eventually(lambda: self.ran[number])
        return monotonic() - began - stood_still.total_s

    async def settled(self) -> None:
        """Wait until every letter has come to its end."""
        await eventually(self._is_empty)

    async def _is_empty(self) -> bool:
        try:
            return (await self.producer.stats()).open == 0
        except DeadLetterError:
            return False


@asynccontextmanager
async def under_load(
    queues: Callable[..., DeadLetterQueue], workers_redis: Any = None, **settings: Any
) -> AsyncIterator[Load]:
    """Load while the block runs; after it every letter comes to its end."""
    settings = {"lease_seconds": 1.0, "operation_timeout": 1.0, "concurrency": 20} | settings
    load = Load(queues(workers_redis, **settings), queues(**settings))
    async with running(load.worker), anyio.create_task_group() as group:
        group.start_soon(load.produce)
        await eventually(lambda: len(load.ran) > 20)
        yield load
        group.cancel_scope.cancel()


async def finish(load: Load) -> None:
    """After the fault: work resumes soon; every letter that was acknowledged has been run."""
    took = await load.resumed()
    assert took < RESUMES_S, took
    await load.end()
    await load.settled()
    assert not load.acknowledged - set(load.ran)
