"""One run: a queue on a server or a cluster, producers and workers at work on it, faults, and the check at the end."""

import itertools
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.clusters import Cluster
from tests.support.harness.actors import ROOT, Actor
from tests.support.harness.checker import Figures, check
from tests.support.harness.eye import Eye
from tests.support.harness.history import History, Journal, shard_of
from tests.support.harness.promise import Promise
from tests.support.harness.source import source_of
from tests.support.harness.wires import Wire
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.store.layout import shard_key, shard_tag, slot_of
from uno.event_bus.dead_letter.store.local_node import LocalNode

__all__ = ["FAILOVER_S", "RESUMES_S", "Promise", "Run"]

NODE_TIMEOUT_S = 1.0
"""Of the clusters here."""

FAILOVER_S = 2 * NODE_TIMEOUT_S + 2
"""Within which work resumes after a primary has died."""

RESUMES_S = 5.0
"""Within which work resumes after any other fault has been healed."""

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
        self.others: list[Actor] = []
        """Processes that end by themselves."""
        self.url = self.place.every_url if isinstance(self.place, Cluster) else self.place.url
        """Of a cluster with every node: a process may start while any of them is away."""
        self.remap: dict[str, str] = {}
        self._eye: Eye | None = None
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

    @property
    def eye(self) -> Eye:
        if self._eye is None:

            def source() -> Any:
                return source_of(self.place.url, {name: to for name, to in self.remap.items() if name == "*:*"})

            self._eye = Eye(source, self.config, self.journal)
        return self._eye

    def ask[T](self, question: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the queue's."""
        return self.eye.ask(question)

    @property
    def queue(self) -> DeadLetterQueue:
        """The queue as the run itself sees it."""
        return self.eye.queue

    def stats(self) -> QueueStats | None:
        """The queue's figures; None while it does not answer."""
        return self.eye.stats()

    def wire(self) -> Wire:
        """A wire to the server, for processes whose `url` it becomes."""
        return Wire(self.server.url, seed=self.seed, tree=self.tree)

    # -- processes -----------------------------------------------------------------------------------

    def settings_of(self, kind: str, how: dict[str, Any]) -> dict[str, Any]:
        """What a process of this kind is told; `how` is for it alone."""
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
        started = [Actor(kind, self.settings_of(kind, dict(how)), self.tree) for _ in range(count)]
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

    def unanswered(self, worker: Actor) -> set[str]:
        """Letters whose settle this worker has sent, and was not answered."""
        self.history.follow()
        told = [line for line in self.history.lines if line.actor == worker.name]
        return {line.letter for line in told if line.what == "settling"} - {
            line.letter for line in told if line.what == "settled"
        }

    def are_taken_again(self, letters: set[str]) -> bool:
        """Whether any of these letters has been taken a second time."""
        self.history.follow()
        tokens = {(line.letter, line.token) for line in self.history.lines if line.what == "take"}
        return any(times > 1 for times in Counter(letter for letter, _ in tokens if letter in letters).values())

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
        """Wait until each shard has given letters to a worker that asked after `since`; return the seconds that took.

        What was asked before may have been answered by a node that has died since.

        The run captures letters of its own for that, as the producers' lanes may all wait for other shards; they
        count as tried, never as acknowledged.
        """
        missing = set(self.shards if shards is None else shards)
        seen, longest = 0, 0.0
        deadline = time.monotonic() + within_s
        while missing:
            self.eye.probe(missing)
            self.history.follow()
            lines = self.history.lines
            for line in lines[seen:]:
                if line.what == "take" and line.asked_at > since and (shard := shard_of(line.letter)) in missing:
                    missing.discard(shard)
                    longest = max(longest, line.at - since)
            seen = len(lines)
            if missing and time.monotonic() > deadline:
                self.failures.append(f"shards {sorted(missing)} did not resume within {within_s:g} s")
                longest = within_s
                break
        self.resumed_s.append(longest)
        return longest

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
        end = self.eye.end_state()
        self.totals, self.open = end.totals, end.open
        self.figures = check(self.history.by_time(), end)
        self.failures += self.promise.broken(self.figures, self.totals, self.resumed_s)
        return self.figures

    def _drain(self, drain_s: float, done: Callable[[QueueStats], bool]) -> None:
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline:
            self.replace_dead()
            stats = self.stats()
            if stats is not None and done(stats):
                return
            time.sleep(0.05)

    def close(self, *, keep: bool = False) -> None:
        """End every process of the run, and remove its files."""
        for actor in [*self.producers, *self.workers, *self.others]:
            actor.send(signal.SIGCONT)
            actor.kill()
        if self._eye is not None:
            self._eye.close()
        self.journal.close()
        if keep:
            (self.folder / "servers.log").write_text(self.place.log())
            self.remarks.append(f"histories in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
