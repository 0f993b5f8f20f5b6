"""The demo's course: open a queue of its own, publish what fails, work until all is settled, draw up the ledger."""

from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Final

import anyio
import anyio.to_thread
from msgspec.structs import replace

from uno.event_bus import EventBus
from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.demo.crew import SecondWorker
from uno.event_bus.dead_letter.demo.events import PUBLISHING, Publication, digest_of, from_file, generated
from uno.event_bus.dead_letter.demo.journal import Journal
from uno.event_bus.dead_letter.demo.ledger import Ledger, ParkedLetter
from uno.event_bus.dead_letter.demo.pages import ledger_lines
from uno.event_bus.dead_letter.demo.place import own_queue, server
from uno.event_bus.dead_letter.demo.plan import LEASE_S, Plan, open_shop
from uno.event_bus.dead_letter.demo.screen import LiveScreen, Screen
from uno.event_bus.dead_letter.demo.shop import OUTAGE_S
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.failure import sole_error
from uno.event_bus.dead_letter.letter import LetterState
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.rig.log import log_to
from uno.event_bus.dead_letter.where import Where

__all__ = ["run_demo"]

PUBLISHERS: Final = 48
"""Events that are published at a time."""

LOOK_S: Final = 0.2
"""Between two looks at the queue's books."""

STUCK_S: Final = 20.0
"""When nothing has changed for so long, what is open counts as unaccounted for."""


async def run_demo(*, url: str | None, events: Path | None, letters: int, seed: int, progress: bool) -> int:
    """Run the demo and return its exit status: 0 if `verify` is clean and nothing is unaccounted for, else 1.

    Args:
        url: A Redis; None for an embedded server in a directory of its own, which is removed afterwards.
        events: An NDJSON file (also gzipped) to take the events from; None generates the shop's own.
        letters: How many events to generate.
        seed: Of the generated events: the same seed gives the same ones.
        progress: Draw bars, for a terminal; else short lines.

    Raises `ConfigError` when the file or the number of letters is no good, `StoreUnavailable` without a Redis.
    """
    if letters < 1:
        raise ConfigError(f"letters is {letters}: allowed is a whole number from 1 upward")
    started = monotonic()
    publications = generated(letters, seed) if events is None else await anyio.to_thread.run_sync(from_file, events)
    screen = _screen(progress)
    async with server(url) as address, own_queue(address) as queue:
        plan = Plan(address, queue, file=events is not None, opens_at=0)
        with screen:
            _introduce(screen, url, events, len(publications))
            try:
                ledger = await Demo(plan, publications, screen).run()
            except BaseExceptionGroup as group:
                raise sole_error(group) from None
    screen.say()
    *lines, last = ledger_lines(ledger, elapsed_s=monotonic() - started)
    for line in lines:
        screen.say(line)
    screen.say(last, style="bold green" if ledger.sound else "bold red")
    return 0 if ledger.sound else 1


def _screen(progress: bool) -> Screen:
    if progress:
        try:
            return LiveScreen()
        except ImportError:  # rich is part of the extra `cli`
            pass
    return Screen()


def _introduce(screen: Screen, url: str | None, events: Path | None, count: int) -> None:
    where = "an embedded server" if url is None else "your Redis, in a queue of its own"
    if events is None:
        screen.say(f"A small shop on {where}. {count:,} events, and each fails:")
        screen.say("  the warehouse hangs up twice, the payment provider is down for 3 s, the")
        screen.say("  carrier is slow, orders are cancelled, and nobody thought of Iceland.")
    else:
        screen.say(f"{count:,} events of {events.name}")
        screen.say(f"on {where}. Each fails 1 to 3 times, 1 in 20 always.")
    screen.say("Two worker processes bring the letters back. One will be killed; what it holds")
    screen.say(f"comes back when its leases run out, after {LEASE_S:.0f} s. A few letters, step by step:")
    screen.say()


# --- the course ------------------------------------------------------------------------------------------


class Demo:
    """One run: publishers, two workers, and somebody who watches the books."""

    def __init__(self, plan: Plan, publications: list[Publication], screen: Screen) -> None:
        self._plan = plan
        self._publications = publications
        self._screen = screen
        self._published = False
        self._journal = Journal()
        self._journal.listeners.append(screen.step)
        screen.expect(len(publications))

    async def run(self) -> Ledger:
        """Publish, work until nothing is open but parked letters, and return the ledger."""
        second = SecondWorker(self._journal.write, self._say)
        async with second.at_work():
            self._screen.begin()
            plan = replace(self._plan, opens_at=time() + OUTAGE_S)
            await second.begin(plan)
            dlq, bus = open_shop(plan, "this process", self._journal.write)
            async with dlq:
                with log_to(self._say):
                    await self._work(dlq, bus)
                await second.stop()
                return await self._ledger(dlq)

    async def _work(self, dlq: DeadLetterQueue, bus: EventBus) -> None:
        stop = anyio.Event()
        async with anyio.create_task_group() as workers:
            workers.start_soon(partial(dlq.run, stop=stop))
            async with anyio.create_task_group() as group:
                group.start_soon(self._publish_all, bus)
                group.start_soon(self._until_settled, dlq)
            stop.set()

    def _say(self, line: str) -> None:
        self._screen.say(f"{self._screen.elapsed_s:4.1f} s  {line}", style="bold")

    async def _publish_all(self, bus: EventBus) -> None:
        waiting = iter(self._publications)

        async def publisher() -> None:
            for publication in waiting:
                PUBLISHING.set(publication)
                await bus.publish(publication.event, type=publication.type, event_id=publication.event_id)

        async with anyio.create_task_group() as group:
            for _ in range(PUBLISHERS):
                group.start_soon(publisher)
        self._published = True

    async def _until_settled(self, dlq: DeadLetterQueue) -> None:
        before: object = None
        changed_at = monotonic()
        while True:
            published = self._published  # as it was before the look: the last captures may be later than that
            stats = await dlq.stats()
            self._screen.books(stats)
            now = (stats.open, stats.parked, stats.totals)
            if now != before:
                before, changed_at = now, monotonic()
            if published and stats.open == stats.parked:
                return
            if monotonic() - changed_at > STUCK_S:
                return
            await anyio.sleep(LOOK_S)

    async def _ledger(self, dlq: DeadLetterQueue) -> Ledger:
        report = await dlq.verify()
        stats: QueueStats = await dlq.stats()
        self._screen.books(stats)
        parked = [
            ParkedLetter((letter.event_id, letter.subscription), digest_of(letter.payload))
            async for letter in dlq.letters(Where(state=LetterState.PARKED.value))
        ]
        sent: dict[str, tuple[str, int]] = {}
        for each in self._publications:
            # The queue captures a repeated event id once: the first.
            sent.setdefault(each.event_id, (each.digest, len(each.payload)))
        return Ledger.of(self._journal, stats, report, parked, sent)
