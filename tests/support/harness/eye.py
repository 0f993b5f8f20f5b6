"""The run's own eye on its queue: always of this checkout, never of a broken variant."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import anyio

from tests.support.harness.checker import EndState
from tests.support.harness.history import Journal
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterError, DeadLetterQueue
from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.letter import NewLetter

__all__ = ["Eye"]

PROBE_S = 0.3
"""How long a probe is tried for; the next one is another letter."""


class Eye:
    """Asks the queue from blocking code; `source` gives where it connects to, when it is first used."""

    def __init__(self, source: Callable[[], Any], config: dict[str, Any], journal: Journal) -> None:
        self._source = source
        self._config = config
        self._journal = journal
        self._runner = asyncio.Runner()
        self._queue: DeadLetterQueue | None = None
        self._numbers = itertools.count()

    def ask[T](self, question: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the queue's."""
        return self._runner.run(question)

    @property
    def queue(self) -> DeadLetterQueue:
        if self._queue is None:
            patient = self._config | {"durability": "memory", "operation_timeout": 5.0}
            self._queue = DeadLetterQueue(self._source(), DeadLetterConfig(**patient))
        return self._queue

    def stats(self) -> QueueStats | None:
        """The queue's figures; None while it does not answer."""
        try:
            return self.ask(self.queue.stats())
        except DeadLetterError:
            return None

    def probe(self, shards: Iterable[int]) -> None:
        """Capture a letter in each shard, or try to for a moment.

        Probes count as tried, never as acknowledged: the run does not wait for their outcome.
        """

        async def probe(shard: int) -> None:
            id = next(id for n in itertools.count() if self._home_of(id := f"probe.{next(self._numbers)}.{n}") == shard)
            self._journal.write("invoke", id)
            with suppress(DeadLetterError), anyio.move_on_after(PROBE_S):
                await self.queue.add({"id": id, "do": "ok", "ms": 1}, event_id=id, delay=0)

        async def probe_all() -> None:
            with suppress(DeadLetterError):
                await self.queue.open()
                async with anyio.create_task_group() as group:
                    for shard in shards:
                        group.start_soon(probe, shard)
            await anyio.sleep(0.03)

        self.ask(probe_all())

    def _home_of(self, event_id: str) -> int:
        """The shard of an event, as the engine chooses it; the queue must be open."""
        [receiver] = self.queue._storage._receivers.values()
        return receiver.home_of(NewLetter(event_id=event_id, type="", payload=b""))

    def end_state(self) -> EndState:
        """What the queue holds, its totals, and what `verify` finds."""

        async def look() -> EndState:
            state = EndState()
            async for letter in self.queue.letters():
                state.open[letter.id] = (letter.event_id, str(letter.state))
            report = await self.queue.verify()
            state.violations = [f"{v.kind} {v.letter_id} {v.where}" for v in report.violations]
            state.totals = (await self.queue.stats()).totals
            return state

        return self.ask(look())

    def close(self) -> None:
        if self._queue is not None:
            self.ask(self._queue.aclose())
        self._runner.close()
