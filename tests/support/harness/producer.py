"""A producer in a process of its own: ``python -m tests.support.harness.producer '{…}'``.

It captures one event after another, each with an id of its own, and repeats a capture whose outcome is unknown, or
that was refused, by the same id until it is acknowledged. SIGTERM: the captures that have begun are brought to
their end first.
"""

import itertools
import json
import random
import signal
import sys
import time
from typing import Any

import anyio

from tests.support.harness.history import Journal
from tests.support.harness.source import queue_of
from uno.event_bus.dead_letter import DeadLetterError, DeadLetterQueue, QueueFull

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
        self._cancels: float = settings.get("cancels", 0.0)
        self._most: int = settings.get("most", 0)
        self._numbers = itertools.count()
        self._stopping_at: float | None = None

    async def run(self) -> None:
        """Capture until SIGTERM."""
        self._journal.write("ready")
        async with anyio.create_task_group() as signals:
            signals.start_soon(self._obey)
            async with anyio.create_task_group() as lanes:
                for _ in range(self._lanes):
                    lanes.start_soon(self._produce)
            signals.cancel_scope.cancel()

    async def _obey(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                self._stopping_at = time.monotonic()

    async def _produce(self) -> None:
        while self._stopping_at is None and not (self._most and (number := next(self._numbers)) >= self._most):
            number = next(self._numbers) if not self._most else number
            _, do, ms = self._chance.choices(self._mix, [weight for weight, *_ in self._mix])[0]
            event_id = f"{self._name}.{number}"
            event = {"id": event_id, "do": do, "ms": ms}
            async with anyio.create_task_group() as copies:
                for _ in range(self._copies):
                    copies.start_soon(self._capture, event_id, event)
            await anyio.sleep(self._gap_s * (0.5 + self._chance.random()))

    async def _capture(self, event_id: str, event: dict[str, Any]) -> None:
        while not await self._try(event_id, event) and self._repeats:
            if self._stopping_at is not None and time.monotonic() - self._stopping_at > GIVE_UP_S:
                return
            await anyio.sleep(PAUSE_S * (0.5 + self._chance.random()))

    async def _try(self, event_id: str, event: dict[str, Any]) -> bool:
        """Capture once; answer whether it was acknowledged."""
        self._journal.write("invoke", event_id)
        patience_s = self._chance.random() * self._cancels if self._cancels else None
        scope = anyio.move_on_after(patience_s)
        try:
            with scope:
                delay_s = event["ms"] / 1000 if event["do"] == "later" else 0
                letter = await self._queue.add(event, event_id=event_id, delay=delay_s)
                self._journal.write("ok", event_id, letter)
                return True
        except DeadLetterError as error:
            certain = isinstance(error, QueueFull) or getattr(error, "certain", False)
            self._journal.write("fail" if certain else "info", event_id, note=f"{error.code}: {error}")
            return False
        self._journal.write("info", event_id, note="cancelled")
        return False


async def main(settings: dict[str, Any]) -> None:
    queue = queue_of(settings)
    producer = Producer(settings, queue)
    try:
        await producer.run()
    finally:
        await queue.aclose()


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
