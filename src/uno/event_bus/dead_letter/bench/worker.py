"""A worker of the benchmark: the engine's own, with a handler that does nothing but take notes."""

from collections.abc import AsyncIterator, Callable
from time import monotonic, process_time
from typing import Any

import anyio

from uno.event_bus.dead_letter.bench.bitset import TICK_S, BitSet
from uno.event_bus.dead_letter.bench.histogram import Histogram
from uno.event_bus.dead_letter.bench.messages import Message, Ready, Worked
from uno.event_bus.dead_letter.bench.plan import TYPE, Plan
from uno.event_bus.dead_letter.bench.server_time import ServerTime
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["BenchWorker"]


class DrawnToFail(Exception):
    """What the first attempt of some letters fails with."""


class BenchWorker:
    """The workers' part, in one process."""

    def __init__(self, plan: Plan, tell: Callable[[Message], None]) -> None:
        self._plan = plan
        self._tell = tell
        config = plan.config()
        self._dlq = DeadLetterQueue(plan.url, config)
        self._dlq.add_handler(self._handle, TYPE)
        self._store = Store(seeds_of(plan.url), config, client_name="uno-dlq-bench-clock")
        self._time = ServerTime(self._store)
        self._runs = 0
        self._done, self._ticks = BitSet(), BitSet()
        self._waits = Histogram()
        self._began_s = self._ended_s = 0.0

    async def run(self, words: AsyncIterator[bytes]) -> Worked:
        """Work until there are no more words; return what was seen."""
        stop, ready = anyio.Event(), anyio.Event()

        async def listen() -> None:
            async for _ in words:
                pass
            stop.set()

        async def announce() -> None:
            await ready.wait()
            self._tell(Ready())

        try:
            await self._store.open()
            await self._time.begin()
            async with self._dlq, anyio.create_task_group() as group:
                for role in (listen, announce, self._time.keep_asking):
                    group.start_soon(role)
                cpu_s = process_time()
                await self._dlq.run(stop=stop, ready=ready)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.close()
        return Worked(
            runs=self._runs,
            done=self._done.packed,
            waits=self._waits,
            ticks=self._ticks.packed,
            began_s=self._began_s,
            ended_s=self._ended_s,
            cpu_s=process_time() - cpu_s,
        )

    async def _handle(self, event: dict[str, Any], letter: Letter) -> None:
        now_s = self._ended_s = monotonic()
        self._began_s = self._began_s or now_s
        self._runs += 1
        self._ticks.add(int((now_s - self._plan.origin_s) / TICK_S))
        number = event["n"]
        if letter.attempt == 1:
            shard = int(letter.id.partition("-")[0])
            self._waits.add(self._time.now_s(shard, now_s) - letter.not_before_ms / 1000)
            if self._plan.fails(number):
                raise DrawnToFail
        self._done.add(number)
