"""The benchmark's course: a place, a queue of its own, processes at work, an outage perhaps, and the report."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Final

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.bench.bitset import BitSet
from uno.event_bus.dead_letter.bench.errors import first_of_ours
from uno.event_bus.dead_letter.bench.figures import Tally
from uno.event_bus.dead_letter.bench.messages import BEGIN, FINISH
from uno.event_bus.dead_letter.bench.nodes import NodeState, looked_at
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.bench.outage import Outage, kill_primary
from uno.event_bus.dead_letter.bench.participants import Participant, at_work
from uno.event_bus.dead_letter.bench.place import Place, own_queue, place_of
from uno.event_bus.dead_letter.bench.plan import Plan
from uno.event_bus.dead_letter.bench.producer import PATIENCE_S
from uno.event_bus.dead_letter.bench.report import Report
from uno.event_bus.dead_letter.bench.reporter import Seen, report_of
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.operations import Operations
from uno.event_bus.dead_letter.rig.log import log_to
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Watch", "run_bench"]

LOOK_S: Final = 0.2
"""Between two looks at the queue's books."""

HALF_LOOK_S: Final = 0.01

STUCK_S: Final = 30.0
"""When nothing has changed for so long after the captures, and for two leases, what is open stays open."""

MOST_LOGGED: Final = 5
"""Lines of the engine's log that become notes, at most."""


class Watch:
    """Who watches a benchmark; the default does not look."""

    def stage(self, what: str, letters: int | None = None) -> None:
        """Hear what begins now, and of how many letters."""

    def done(self, letters: int) -> None:
        """Hear how many letters are resolved or parked."""

    def say(self, line: str) -> None:
        """Hear what has to be said even if there will be no report."""


async def run_bench(options: Options, watch: Watch | None = None) -> Report:
    """Run a benchmark and return its report; whatever it has started or written is gone by then.

    Raises `ConfigError` and `QueueTaken` before anything is written, `StoreUnavailable` without a Redis, and
    `BenchFailed` when it could not be carried out.
    """
    watch = watch or Watch()
    watch.stage("start 3 + 3 nodes" if options.cluster else "start")
    logged: dict[str, None] = {}
    try:
        with log_to(logged.setdefault, logging.ERROR):
            async with place_of(options) as place, own_queue(place, options, watch.say) as (config, store):
                try:
                    report = await Benchmark(place, config, options, store, watch).run()
                finally:
                    watch.stage("clean up")
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from None
    report.notes.extend(list(logged)[:MOST_LOGGED])
    return report


class Benchmark:
    """One run, on an open store."""

    def __init__(self, place: Place, config: DeadLetterConfig, options: Options, store: Store, watch: Watch) -> None:
        self._place = place
        self._config = config
        self._options = options
        self._store = store
        self._watch = watch
        self._books = Operations(store)
        self._plan = Plan.of(place.url, config, options, origin_s=monotonic())
        self._looks: list[dict[str, NodeState]] = []
        self._outage: Outage | None = None
        self._produced = False

    async def run(self) -> Report:
        """Capture and work until nothing is open, and return the report."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._watch.stage("start processes")
        async with at_work(self._plan, workers=self._options.workers) as (producers, workers):
            await self._look()
            owners_before = self._owners()
            self._watch.stage("bench", self._options.letters)
            async with anyio.create_task_group() as group:
                group.start_soon(self._until_settled)
                await self._produce(producers)
            await self._look()
            for worker in workers:
                await worker.end_input()
            for worker in workers:
                await worker.ended.wait()
        self._watch.stage("verify")
        verified, stats, still_there = await self._books.verify(), await self._books.stats(), await self._still_there()
        seen = Seen(
            at=at,
            options=self._options,
            config=self._config,
            place=self._place,
            origin_s=self._plan.origin_s,
            tally=Tally(
                [each.produced for each in producers if each.produced],
                [each.worked for each in workers if each.worked],
            ),
            looks=self._looks,
            owners_before=owners_before,
            owners_after=self._owners(),
            outage=self._outage,
            verified=verified,
            stats=stats,
            still_there=still_there,
        )
        return report_of(seen)

    # -- the course ----------------------------------------------------------------------------------

    async def _produce(self, producers: Sequence[Participant]) -> None:
        """Have all letters captured; with an outage in the middle, go on until it is over."""
        for producer in producers:
            await producer.tell(BEGIN)
        if self._options.kill_primary and self._place.cluster is not None:
            await self._until_half(producers)
            self._outage = await kill_primary(self._place.cluster, self._config, self._options.seed, self._look)
            for producer in producers:
                await producer.tell(FINISH)
        for producer in producers:
            await producer.ended.wait()
        if self._outage is not None and self._place.cluster is not None:
            with suppress(StoreUnavailable):  # then a node is away, and the report says so
                await anyio.to_thread.run_sync(self._place.cluster.wait_until_ok)
        self._produced = True

    async def _until_half(self, producers: Sequence[Participant]) -> None:
        """Return when half of the letters are acknowledged."""
        while sum(producer.acknowledged for producer in producers) < self._options.letters / 2:  # noqa: ASYNC110 - their sum
            await anyio.sleep(HALF_LOOK_S)

    async def _until_settled(self) -> None:
        """Return when no letter is open but parked ones, or nothing changes any more.

        Raises `StoreUnavailable` when the books could not be read for as long as a producer would wait.
        """
        stuck_s = max(STUCK_S, 2 * self._config.lease_seconds)
        before: object = None
        changed_s = read_s = monotonic()
        while True:
            await anyio.sleep(LOOK_S)
            produced = self._produced  # as it was before the look: the last captures may be later than that
            try:
                stats = await self._books.stats()
            except DeadLetterError:
                if monotonic() - read_s > PATIENCE_S:
                    raise
                continue  # a node is away
            read_s = monotonic()
            self._watch.done(stats.totals["resolved"] + stats.parked)
            if produced and stats.open == stats.parked:
                return
            now = (produced, stats.open, stats.totals)
            if now != before:
                before, changed_s = now, read_s
            elif produced and read_s - changed_s > stuck_s:
                return

    # -- looks at servers and queue ------------------------------------------------------------------

    async def _look(self) -> None:
        self._looks.append(await looked_at(self._store))

    def _owners(self) -> list[str]:
        """Return the address of each shard's primary."""
        return [shard.route.primary.target.name for shard in self._store.shards]

    async def _still_there(self) -> BitSet:
        """Return the numbers of the letters that the queue holds."""
        numbers = BitSet()
        async for letter in self._books.letters(whole=False):
            numbers.add(self._plan.number_of(letter.event_id))
        return numbers
