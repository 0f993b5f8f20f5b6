"""The benchmark's course: a place, a queue of its own, processes at work, an outage perhaps, and the report."""

import logging
import os
import platform
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from time import monotonic
from typing import Final, override

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.bench.bits import Bits
from uno.event_bus.dead_letter.bench.crew import Helper, at_work
from uno.event_bus.dead_letter.bench.failed import first_of_ours
from uno.event_bus.dead_letter.bench.figures import (
    Tally,
    balance,
    failover_of,
    latency_of,
    letters_of_nodes,
    node_figures,
    notes_on_bounds,
    process_figures,
    rate,
)
from uno.event_bus.dead_letter.bench.nodes import NodeState, looked_at
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.bench.outage import Outage, kill_primary
from uno.event_bus.dead_letter.bench.place import Place, own_queue, place_of
from uno.event_bus.dead_letter.bench.plan import BEGIN, FINISH, Plan
from uno.event_bus.dead_letter.bench.report import Books, Report, Setup
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.operations import Operations, QueueStats, VerifyReport
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Watch", "run_bench"]

LOOK_S: Final = 0.2
"""Between two looks at the queue's books."""

HALF_LOOK_S: Final = 0.01

STUCK_S: Final = 30.0
"""When nothing has changed for so long after the captures, what is open stays open, and the report says so."""

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
    try:
        with _log_lines() as logged:
            async with place_of(options) as place, own_queue(place, options, watch.say) as (config, store):
                report = await Benchmark(place, config, options, store, watch).run()
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from None
    report.notes.extend(logged[:MOST_LOGGED])
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
            before = self._owners()
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
        tally = Tally(
            [helper.produced for helper in producers if helper.produced],
            [helper.worked for helper in workers if helper.worked],
        )
        return await self._report(at, tally, before)

    async def _look(self) -> None:
        self._looks.append(await looked_at(self._store))

    def _owners(self) -> list[str]:
        """Return the address of each shard's primary."""
        return [shard.route.primary.target.name for shard in self._store.shards]

    # -- the course ----------------------------------------------------------------------------------

    async def _produce(self, producers: Sequence[Helper]) -> None:
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

    async def _until_half(self, producers: Sequence[Helper]) -> None:
        """Return when half of the letters are acknowledged."""
        while True:
            if sum(producer.acknowledged for producer in producers) >= self._options.letters / 2:
                return
            await anyio.sleep(HALF_LOOK_S)

    async def _until_settled(self) -> None:
        """Return when no letter is open but parked ones, or nothing changes any more."""
        before: object = None
        changed_s = monotonic()
        while True:
            await anyio.sleep(LOOK_S)
            try:
                stats = await self._books.stats()
            except DeadLetterError:
                continue  # a node is away
            self._watch.done(stats.totals["resolved"] + stats.parked)
            if self._produced and stats.open == stats.parked:
                return
            now = (self._produced, stats.open, stats.totals)
            if now != before:
                before, changed_s = now, monotonic()
            elif self._produced and monotonic() - changed_s > STUCK_S:
                return

    # -- the report ----------------------------------------------------------------------------------

    async def _report(self, at: str, tally: Tally, before: list[str]) -> Report:
        verified = await self._books.verify()
        stats = await self._books.stats()
        captured = [int(row.get("captured") or 0) for row in stats.by_shard]
        after = self._owners()
        of_node = letters_of_nodes(captured, before, after, self._outage)
        nodes = node_figures(self._looks, of_node, tally.seconds)
        setup, processes = self._setup(at), process_figures(tally)
        notes = notes_on_bounds(setup, tally, processes, nodes, failed_over=self._outage is not None)
        if before != after and self._outage is None:
            notes.append("shards have changed their nodes meanwhile; their letters are shown at the last one")
        return Report(
            setup=setup,
            seconds=round(tally.seconds, 3),
            capture_per_s=rate(len(tally.acknowledged), tally.captured_s - tally.began_s),
            processing_per_s=rate(stats.totals["resolved"], tally.last_start_s - tally.first_start_s),
            capture=latency_of(tally.calls),
            due_to_start=latency_of(tally.waits),
            books=await self._closed_books(tally, stats),
            errors=dict(sorted(tally.errors.items())),
            nodes=nodes,
            letters_by_shard=captured,
            balance_of_shards=balance(captured),
            balance_of_nodes=balance(self._by_first_owner(captured, before)),
            failover=failover_of(tally, self._outage, self._plan.origin_s),
            processes=processes,
            verify_clean=verified.clean,
            violations=_violations(verified),
            notes=notes,
        )

    def _by_first_owner(self, captured: Sequence[int], before: Sequence[str]) -> list[int]:
        """Return the letters of each node that began as a primary, by the shards that it had then."""
        primaries = [address for address, state in self._looks[0].items() if state.role == "primary"]
        letters = dict.fromkeys([*primaries, *before], 0)
        for count, address in zip(captured, before, strict=True):
            letters[address] += count
        return list(letters.values())

    async def _closed_books(self, tally: Tally, stats: QueueStats) -> Books:
        """Lay the queue's totals beside the notes of producers and handlers; a loss that either side sees counts.

        The totals are blind where a letter that nobody was told of makes up for one that is gone, the handlers
        where a letter was run and then forgotten.
        """
        acknowledged, resolved = len(tally.acknowledged), stats.totals["resolved"]
        still_there = Bits()
        if stats.open:
            async for letter in self._books.letters(whole=False):
                still_there.add(self._plan.number_of(letter.event_id))
        never_run = len(tally.acknowledged - tally.done - still_there)
        return Books(
            acknowledged=acknowledged,
            given_up=tally.given_up,
            captured=stats.totals["captured"],
            resolved=resolved,
            parked=stats.parked,
            open=stats.open - stats.parked,
            retried=stats.totals["retried"],
            runs=tally.runs,
            duplicates=max(tally.runs - resolved - stats.totals["retried"], 0),
            lost=max(acknowledged - resolved - stats.open, never_run, 0),
        )

    def _setup(self, at: str) -> Setup:
        first, options = self._looks[0], self._options
        roles = [state.role for state in first.values()]
        local = all(address.startswith(("127.", "localhost:", "::1", "/")) for address in first)
        return Setup(
            at=at,
            uno=_version_of("uno-dead-letter"),
            python=platform.python_version(),
            event_loop=f"uvloop {_version_of('uvloop')}" if find_spec("uvloop") else "asyncio",
            machine=f"{platform.system()} {platform.machine()}",
            cores=os.process_cpu_count() or 1,
            kind=self._place.kind,
            url=self._place.name,
            servers=sorted({state.server for state in first.values()}),
            primaries=roles.count("primary"),
            replicas=roles.count("replica"),
            is_shared=self._place.is_own or local,
            queue=self._config.queue,
            shards=self._store.layout.shards,
            workers=options.workers,
            producers=options.producers,
            letters=options.letters,
            payload_bytes=options.payload_bytes,
            fail_rate=options.fail_rate,
            concurrency=options.concurrency,
            durability=self._config.durability,
            lease_seconds=self._config.lease_seconds,
            seed=options.seed,
        )


def _violations(verified: VerifyReport) -> list[str]:
    return [f"{each.kind} {each.letter_id} {each.where}" for each in verified.violations]


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown)"


# --- the engine's log ------------------------------------------------------------------------------------


class _Notes(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._lines = lines

    @override
    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._lines:
            self._lines.append(line)


@contextmanager
def _log_lines() -> Generator[list[str]]:
    """Keep the engine's log off the terminal, and give the errors among its lines."""
    lines: list[str] = []
    logger, handler = logging.getLogger("uno"), _Notes(lines)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
