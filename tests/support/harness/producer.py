"""A producer in a process of its own: ``python -m tests.support.harness.producer '{…}'``.

It captures one event after another, or several at a time, each with an id of its own, and repeats a capture whose
outcome is unknown, or that was refused, by the same id until it is acknowledged. SIGTERM: the captures that have begun
are brought to their end first, and what waits in a spool is sent.
"""

import itertools
import json
import random
import signal
import sys
import time
from typing import Any

import anyio
from anyio.abc import TaskGroup

from tests.support.harness.history import Journal, Line
from tests.support.harness.source import queue_of
from uno.event_bus.dead_letter import DeadLetterError, DeadLetterQueue, PartialCapture, QueueFull

GIVE_UP_S = 25.0
"""After SIGTERM: how long a capture that has begun is tried for."""

PAUSE_S = 0.03


class Producer:
    """Lanes of captures, one after the other in each."""

    def __init__(self, settings: dict[str, Any], queue: DeadLetterQueue) -> None:
        self._queue = queue
        self._journal = Journal(settings["folder"], settings["name"])
        self._name = settings["name"]
        self._chance = random.Random(f"{settings['seed']} {self._name}")
        self._gap_s: float = settings.get("gap_s", 0.1)
        self._lanes: int = settings.get("lanes", 4)
        self._mix: list[list[Any]] = settings.get("mix", [[1, "ok", 5]])
        self._copies: int = settings.get("copies", 1)
        self._repeats: bool = settings.get("repeats", True)
        self._again_s: float = settings.get("again_s", 0.0)
        """Above 0: each event is captured once more, so long after it was acknowledged."""
        self._cancels: float = settings.get("cancels", 0.0)
        self._most: int = settings.get("most", 0)
        self._batch: int = settings.get("batch", 1)
        """Most events of one capture: each second one is of so many, by `add_many`."""
        self._also: dict[str, Any] = settings.get("also", {})
        """What each event has besides."""
        self._numbers = itertools.count()
        self._stopping_at: float | None = None

    async def run(self) -> None:
        """Capture until SIGTERM."""
        self._journal.write("ready")
        async with anyio.create_task_group() as signals:
            signals.start_soon(self._obey)
            async with anyio.create_task_group() as lanes:
                for _ in range(self._lanes):
                    lanes.start_soon(self._produce, lanes)
            signals.cancel_scope.cancel()

    async def _obey(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                self._stopping_at = time.monotonic()

    async def send_spooled(self) -> None:
        """Wait until nothing is left in the spool, if there is one."""
        with anyio.move_on_after(GIVE_UP_S):
            while (spool := await self._queue.spool_stats()) is not None and spool.letters:  # noqa: ASYNC110 - files
                await anyio.sleep(PAUSE_S)

    async def _produce(self, group: TaskGroup) -> None:
        while self._stopping_at is None and not (self._most and (number := next(self._numbers)) >= self._most):
            first = next(self._numbers) if not self._most else number
            count = self._batch if self._batch > 1 and self._chance.random() < 0.5 else 1
            numbers = [first, *(next(self._numbers) for _ in range(count - 1))]
            events = [self._event(number) for number in numbers]
            async with anyio.create_task_group() as copies:
                for _ in range(self._copies):
                    copies.start_soon(self._capture, events)
            if self._again_s:
                group.start_soon(self._capture, events, self._again_s)
            await anyio.sleep(self._gap_s * (0.5 + self._chance.random()))

    def _event(self, number: int) -> dict[str, Any]:
        _, do, ms = self._chance.choices(self._mix, [weight for weight, *_ in self._mix])[0]
        return {"id": f"{self._name}.{number}", "do": do, "ms": ms} | self._also

    async def _capture(self, events: list[dict[str, Any]], delay_s: float = 0) -> None:
        await anyio.sleep(delay_s)
        while (events := await self._try(events)) and self._repeats:
            if self._stopping_at is not None and time.monotonic() - self._stopping_at > GIVE_UP_S:
                return
            await anyio.sleep(PAUSE_S * (0.5 + self._chance.random()))

    async def _try(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Capture once; return the events that were not acknowledged."""
        ids = [event["id"] for event in events]
        self._journal.write_all(self._journal.line("invoke", id) for id in ids)
        patience_s = self._chance.random() * self._cancels if self._cancels else None
        letters: dict[int, str] = {}
        errors: dict[int, DeadLetterError] = {}
        with anyio.move_on_after(patience_s):
            try:
                letters = await self._add(events)
            except PartialCapture as partial:
                letters, errors = partial.ids, partial.errors
            except DeadLetterError as error:
                errors = dict.fromkeys(range(len(events)), error)
        self._journal.write_all(self._outcome(id, letters.get(at), errors.get(at)) for at, id in enumerate(ids))
        return [event for at, event in enumerate(events) if at not in letters]

    async def _add(self, events: list[dict[str, Any]]) -> dict[int, str]:
        [event, *more] = events
        delay_s = event["ms"] / 1000 if event["do"] == "later" else 0
        if not more:
            return {0: await self._queue.add(event, event_id=event["id"], delay=delay_s)}
        ids = [event["id"] for event in events]
        return dict(enumerate(await self._queue.add_many(events, event_ids=ids, delay=delay_s)))

    def _outcome(self, event_id: str, letter: str | None, error: DeadLetterError | None) -> Line:
        if letter is not None:
            return self._journal.line("ok", event_id, letter)
        if error is None:
            return self._journal.line("info", event_id, note="cancelled")
        certain = isinstance(error, QueueFull) or getattr(error, "certain", False)
        return self._journal.line("fail" if certain else "info", event_id, note=f"{error.code}: {error}")


async def main(settings: dict[str, Any]) -> None:
    queue = queue_of(settings)
    producer = Producer(settings, queue)
    try:
        await producer.run()
        await producer.send_spooled()
    finally:
        await queue.aclose()


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
