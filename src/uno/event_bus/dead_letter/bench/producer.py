"""A producer: captures its share of the letters, one call a letter, so many at a time, until each is acknowledged."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from time import monotonic, process_time
from typing import Final

import anyio

from uno.event_bus.dead_letter.bench.bitset import TICK_S, BitSet
from uno.event_bus.dead_letter.bench.errors import BenchFailed
from uno.event_bus.dead_letter.bench.histogram import Histogram
from uno.event_bus.dead_letter.bench.messages import FINISH, Message, Produced, Progress, Ready
from uno.event_bus.dead_letter.bench.plan import TYPE, Plan
from uno.event_bus.dead_letter.errors import DeadLetterError, NotReplicated, QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.queue import DeadLetterQueue

__all__ = ["Producer"]

PROGRESS_S: Final = 0.1
AGAIN_S: Final = 0.02
"""A call that failed is repeated, with the same event id, after this long."""

PATIENCE_S: Final = 45.0
"""A letter that was not acknowledged for so long ends the benchmark: longer than failovers take."""


class Producer:
    """The producers' part, in one process. A closed loop: each of its tasks waits for one letter, then takes the next.

    A letter whose outcome is unknown, or that was refused for now, is repeated with its event id, as a service
    would do. What no repeat helps, for `PATIENCE_S`, ends the benchmark.
    """

    def __init__(self, plan: Plan, tell: Callable[[Message], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._dlq = DeadLetterQueue(plan.url, plan.config())
        self._numbers = self._own_numbers()
        self._goes_on = plan.goes_on
        self._acknowledged, self._ticks = BitSet(), BitSet()
        self._captured = 0
        self._calls = Histogram()
        self._errors: Counter[str] = Counter()
        self._ended_s = 0.0

    def _own_numbers(self) -> Iterator[int]:
        """Yield this producer's share of the numbers, and more as long as the plan goes on."""
        for number in count(self._plan.number, self._plan.producers):
            if number >= self._plan.letters and not self._goes_on:
                return
            yield number

    async def run(self, words: AsyncIterator[bytes]) -> Produced:
        """Wait to begin, capture, and return what was seen."""
        async with self._dlq, anyio.create_task_group() as group:
            self._tell(Ready())
            await anext(words, None)  # to begin
            group.start_soon(self._listen, words)
            group.start_soon(self._report)
            began_s, cpu_s = monotonic(), process_time()
            self._ended_s = began_s  # it may have no share
            async with anyio.create_task_group() as tasks:
                for _ in range(self._plan.config().concurrency):
                    tasks.start_soon(self._capture_all)
            group.cancel_scope.cancel()
        return Produced(
            acknowledged=self._acknowledged.packed,
            calls=self._calls,
            errors=dict(self._errors),
            ticks=self._ticks.packed,
            began_s=began_s,
            ended_s=self._ended_s,
            cpu_s=process_time() - cpu_s,
        )

    async def _listen(self, words: AsyncIterator[bytes]) -> None:
        async for word in words:
            if word == FINISH:
                self._goes_on = False
        raise BenchFailed("the benchmark has ended before its letters")

    async def _report(self) -> None:
        while True:
            await anyio.sleep(PROGRESS_S)
            self._tell(Progress(self._captured))

    async def _capture_all(self) -> None:
        while (number := next(self._numbers, None)) is not None:
            await self._capture(number)

    async def _capture(self, number: int) -> None:
        event, event_id = self._plan.event(number), self._plan.event_id(number)
        first_s = monotonic()
        while True:
            called_s = monotonic()
            try:
                await self._dlq.add(event, type=TYPE, event_id=event_id, delay=0)
            except (StoreUnavailable, NotReplicated, QueueFull) as error:
                self._note(error, monotonic() - first_s)
                await anyio.sleep(AGAIN_S)
            else:
                self._ended_s = monotonic()
                self._calls.add(self._ended_s - called_s)
                self._ticks.add(int((self._ended_s - self._plan.origin_s) / TICK_S))
                self._acknowledged.add(number)
                self._captured += 1
                return

    def _note(self, error: DeadLetterError, since_s: float) -> None:
        """Count an error; raise `BenchFailed` when repeats do not help."""
        self._errors[error.code] += 1
        if isinstance(error, NotReplicated) and not self._captured:
            # Not an outage: there are not as many replicas as are asked for.
            raise BenchFailed(f"durability {self._plan.config().durability} is not to be had here: {error}", error.code)
        if since_s > PATIENCE_S:
            raise BenchFailed(f"a letter could not be captured for {PATIENCE_S:g} s: {error}", error.code)
