"""One run: a queue on a server or a cluster, producers and workers at work on it, faults, and the check at the end."""

import asyncio
import itertools
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from tests.support.clusters import Cluster
from tests.support.harness.actors import ROOT, Actor
from tests.support.harness.checker import EndState, Figures, check
from tests.support.harness.history import History, Journal, shard_of
from tests.support.harness.source import source_of
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterError, DeadLetterQueue
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.operations import QueueStats
from uno.event_bus.dead_letter.store.layout import shard_key, shard_tag, slot_of
from uno.event_bus.dead_letter.store.local_node import LocalNode

__all__ = ["Promise", "Run"]

NODE_TIMEOUT_S = 1.0
"""Of the clusters here."""

FAILOVER_S = 2 * NODE_TIMEOUT_S + 2
"""Within which work resumes after a primary has died."""

DRAIN_S = 40.0
QUEUE = "faults"
SETTINGS: dict[str, Any] = {
    "queue": QUEUE,
    "shards": 4,
    "lease_seconds": 1.0,
    "retry_delay": 0.05,
    "max_retries": 20,
    "max_crashes": 50,
    "concurrency": 20,
    "operation_timeout": 2.0,
    "shutdown_grace": 5.0,
}


@dataclass
class Promise:
    """What a run must show; None: counted, and allowed. `double_terminal`, `stale_settles` and `stuck` are always 0."""

    lost: int | None = 0
    duplicated: int | None = None
    errors: int | None = None
    crashed: int | None = None
    orphaned: int | None = None
    lost_externally: int | None = 0
    resumes_s: float | None = None
    parked: int = 0


@dataclass
class Run:
    """One run of a row; `place` is a `Server` or a `Cluster`, empty."""

    place: Server | Cluster
    name: str
    seed: int
    tree: Path = ROOT
    settings: dict[str, Any] = field(default_factory=dict)
    promise: Promise = field(default_factory=Promise)
    remarks: list[str] = field(default_factory=list)
    """What the row says besides its figures."""
    failures: list[str] = field(default_factory=list)
    """Promises of the row's own that were broken."""
    resumed_s: list[float] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)
    totals: dict[str, int] = field(default_factory=dict)
    open: dict[str, tuple[str, str]] = field(default_factory=dict)
    """At the end: letter id → event id, state."""

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.name}")
        self.folder = Path(tempfile.mkdtemp(prefix="uno-faults-"))
        self.history = History(self.folder)
        self.journal = Journal(self.folder, "run")
        self.producers: list[Actor] = []
        self.workers: list[Actor] = []
        self.url = self.place.url
        self.remap: dict[str, str] = {}
        self._runner = asyncio.Runner()
        self._queue: DeadLetterQueue | None = None
        self._numbers = itertools.count()
        self._windows = itertools.count()

    # -- places --------------------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        assert isinstance(self.place, Cluster)
        return self.place

    @property
    def server(self) -> Server:
        assert isinstance(self.place, Server)
        return self.place

    @property
    def config(self) -> dict[str, Any]:
        return SETTINGS | self.settings

    @property
    def lease_s(self) -> float:
        return float(self.config["lease_seconds"])

    @property
    def tick_s(self) -> float:
        return min(1.0, self.lease_s / 3)

    @property
    def shards(self) -> list[int]:
        return list(range(self.config["shards"]))

    def key(self, shard: int, name: str) -> str:
        return shard_key(QUEUE, shard, name)

    def primary(self, shard: int) -> LocalNode:
        return self.cluster.primary_of(slot_of(shard_tag(QUEUE, shard)))

    def shards_of(self, node: LocalNode) -> list[int]:
        """The shards that a primary serves."""
        return [shard for shard in self.shards if self.primary(shard) is node]

    def slots(self) -> list[int]:
        """Every slot of the queue: of its own keys, and of its shards."""
        return [slot_of(QUEUE), *(slot_of(shard_tag(QUEUE, shard)) for shard in self.shards)]

    # -- the run's own eye ---------------------------------------------------------------------------

    def ask[T](self, question: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(question)

    @property
    def queue(self) -> DeadLetterQueue:
        """The queue as the run itself sees it: always of this checkout, never of a broken variant."""
        if self._queue is None:
            eye = self.config | {"durability": "memory", "operation_timeout": 5.0}
            remap = {name: host for name, host in self.remap.items() if name == "*:*"}
            self._queue = DeadLetterQueue(source_of(self.place.url, remap), DeadLetterConfig(**eye))
        return self._queue

    def stats(self) -> QueueStats | None:
        """The queue's figures; None while it does not answer."""
        try:
            return self.ask(self.queue.stats())
        except DeadLetterError:
            return None

    # -- processes -----------------------------------------------------------------------------------

    def _settings(self, kind: str, how: dict[str, Any]) -> dict[str, Any]:
        config = self.config | how.pop("config", {})
        return {
            "url": self.url,
            "remap": self.remap,
            "config": config,
            "folder": str(self.folder),
            "name": f"{kind[0]}{next(self._numbers)}",
            "seed": self.seed,
        } | how

    def produce(self, count: int = 2, *, wait: bool = True, **how: Any) -> list[Actor]:
        """Start producers; `how` is for `producer.Producer`."""
        return self._start("producer", self.producers, count, wait, how)

    def work(self, count: int = 3, *, wait: bool = True, **how: Any) -> list[Actor]:
        """Start workers."""
        return self._start("worker", self.workers, count, wait, how)

    def _start(self, kind: str, among: list[Actor], count: int, wait: bool, how: dict[str, Any]) -> list[Actor]:
        started = [Actor(kind, self._settings(kind, dict(how)), self.tree) for _ in range(count)]
        among += started
        for actor in started if wait else ():
            actor.wait_ready()
        return started

    def kill_worker(self, worker: Actor, *, replace: bool = True) -> None:
        worker.kill()
        self.workers.remove(worker)
        if replace:
            self.work(1, wait=False)

    def replace_dead(self, **how: Any) -> int:
        """Start a worker for each that has ended, as a supervisor does."""
        dead = [worker for worker in self.workers if not worker.is_alive]
        for worker in dead:
            worker.wait()
            self.workers.remove(worker)
        self.work(len(dead), **how)
        return len(dead)

    def begin(self, producers: int = 2, workers: int = 3, warm: int = 60, **how: Any) -> None:
        """Start the load, and wait until so many letters have been run."""
        config = how.pop("config", {})
        self._start("worker", self.workers, workers, False, {"config": config})
        self._start("producer", self.producers, producers, False, {"config": config} | how)
        for actor in [*self.workers, *self.producers]:
            actor.wait_ready()
        self.wait(lambda: self.count("settled") >= warm, 30, f"{warm} letters settled")

    # -- looking -------------------------------------------------------------------------------------

    def count(self, what: str, note: str = "") -> int:
        self.history.follow()
        return sum(line.what == what and line.note.startswith(note) for line in self.history.lines)

    def count_of(self, actor: str, what: str) -> int:
        """Lines of one process."""
        self.history.follow()
        return sum(line.what == what and line.actor == actor for line in self.history.lines)

    def wait(self, check: Callable[[], Any], within_s: float, what: str) -> float:
        """Wait until it is so; return the seconds that took."""
        began = time.monotonic()
        while not check():
            if time.monotonic() - began > within_s:
                raise AssertionError(f"{what}: not within {within_s:g} s")
            time.sleep(0.02)
        return time.monotonic() - began

    def sleep(self, low: float, high: float | None = None) -> None:
        time.sleep(low if high is None else self.chance.uniform(low, high))

    def resumes(self, since: float, shards: Iterable[int] | None = None, within_s: float = 30.0) -> float:
        """Wait until each shard has given letters to a worker after `since`; note and return the seconds that took.

        The run captures letters of its own for that, as the producers' lanes may all wait for other shards; they
        count as tried, never as acknowledged.
        """
        missing = set(self.shards if shards is None else shards)
        seen, longest = 0, 0.0
        deadline = time.monotonic() + within_s
        while missing:
            self._probe(missing)
            self.history.follow()
            lines = self.history.lines
            for line in lines[seen:]:
                if line.what == "take" and line.at > since and (shard := shard_of(line.letter)) in missing:
                    missing.discard(shard)
                    longest = max(longest, line.at - since)
            seen = len(lines)
            if missing and time.monotonic() > deadline:
                self.failures.append(f"shards {sorted(missing)} did not resume within {within_s:g} s")
                longest = within_s
                break
        self.resumed_s.append(longest)
        return longest

    def _probe(self, shards: Iterable[int]) -> None:
        """Capture a letter in each shard, or try to for a moment."""

        async def probe(shard: int) -> None:
            id = next(id for n in itertools.count() if self.home_of(id := f"probe.{next(self._numbers)}.{n}") == shard)
            self.journal.write("invoke", id)
            with suppress(DeadLetterError), anyio.move_on_after(0.3):
                await self.queue.add({"id": id, "do": "ok", "ms": 1}, event_id=id, delay=0)

        async def probe_all() -> None:
            with suppress(DeadLetterError):
                await self.queue.open()
                async with anyio.create_task_group() as group:
                    for shard in shards:
                        group.start_soon(probe, shard)
            await anyio.sleep(0.03)

        self.ask(probe_all())

    def home_of(self, event_id: str) -> int:
        """The shard of an event, as the engine chooses it; the queue must be open."""
        [store] = self.queue._storage._stores.values()
        return store.home_of(NewLetter(event_id=event_id, type="", payload=b""))

    # -- faults --------------------------------------------------------------------------------------

    @contextmanager
    def fault(self, name: str, undoes: Iterable[int] = ()) -> Iterator[None]:
        """Write down begin and end of a fault; `undoes` are the shards whose last writes it may undo."""
        name, shards = f"{name} {next(self._windows)}", json.dumps(sorted(undoes)) if undoes else ""
        self.journal.write("fault", name, shards, note="begin")
        try:
            yield
        finally:
            self.journal.write("fault", name, shards, note="end")

    # -- the end -------------------------------------------------------------------------------------

    def finish(self, *, drain_s: float = DRAIN_S, until: Callable[[QueueStats], bool] | None = None) -> Figures:
        """Let producers end, letters drain and workers leave; then check everything."""
        for actor in [*self.producers, *self.workers]:
            if actor.is_alive:
                actor.wait_ready()  # before that, SIGTERM ends it as it ends any process
        for producer in self.producers:
            producer.send(signal.SIGTERM)
        for producer in self.producers:
            if code := producer.wait():
                self.failures.append(f"{producer} ended with {code}: {producer.said()}")
        self._drain(drain_s, until or (lambda stats: stats.open == stats.parked))
        for worker in self.workers:
            worker.send(signal.SIGTERM)
        for worker in self.workers:
            if code := worker.wait():
                self.failures.append(f"{worker} ended with {code}: {worker.said()}")
        self.figures = check(self.history.by_time(), self._end_state())
        self._judge()
        return self.figures

    def _drain(self, drain_s: float, done: Callable[[QueueStats], bool]) -> None:
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline:
            self.replace_dead()
            stats = self.stats()
            if stats is not None and done(stats):
                return
            time.sleep(0.05)

    def _end_state(self) -> EndState:
        async def look() -> EndState:
            state = EndState()
            async for letter in self.queue.letters():
                state.open[letter.id] = (letter.event_id, str(letter.state))
            report = await self.queue.verify()
            state.violations = [f"{v.kind} {v.letter_id} {v.where}" for v in report.violations]
            state.totals = (await self.queue.stats()).totals
            return state

        found = self.ask(look())
        self.totals, self.open = found.totals, found.open
        return found

    def _judge(self) -> None:
        promise, figures = self.promise, self.figures
        shown = {
            "lost": (figures.lost, promise.lost),
            "duplicated": (figures.duplicated, promise.duplicated),
            "errors": (figures.errors, promise.errors),
            "crashed": (self.totals["crashed"], promise.crashed),
            "orphaned": (self.totals["orphaned"], promise.orphaned),
            "lost_externally": (self.totals["lost_externally"], promise.lost_externally),
            "double_terminal": (figures.double_terminal, 0),
            "stale_settles": (figures.stale_settles, 0),
            "stuck": (figures.stuck, 0),
            "unexpected": (figures.unexpected, 0),
        }
        self.failures += [
            f"{name} is {found}, promised {most}"
            for name, (found, most) in shown.items()
            if most is not None and found > most
        ]
        self.failures += figures.books
        slowest = max(self.resumed_s, default=0.0)
        if promise.resumes_s is not None and slowest > promise.resumes_s:
            self.failures.append(f"resumed after {slowest:.2f} s, promised {promise.resumes_s:g}")

    def close(self, *, keep: bool = False) -> None:
        """End every process of the run, and remove its files."""
        for actor in [*self.producers, *self.workers]:
            actor.send(signal.SIGCONT)
            actor.kill()
        if self._queue is not None:
            self.ask(self._queue.aclose())
        self._runner.close()
        self.journal.close()
        if keep:
            self.remarks.append(f"histories in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
