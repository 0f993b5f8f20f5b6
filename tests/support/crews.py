"""Worker processes for kill tests: started, killed, supervised; and what their ledgers tell afterwards."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.support.standstill import watched
from tests.support.worker_process import Line
from uno.event_bus.dead_letter.store.layout import shard_key

ROOT = Path(__file__).parents[2]
START_S = 30.0


class WorkerProcess:
    """One worker process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.worker_process", json.dumps(settings)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = ""
        self.complaints = ""
        self.is_ready = threading.Event()
        self._threads = [threading.Thread(target=read) for read in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                self.is_ready.set()
            self.said += line

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.complaints += line

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it is ready; or was killed before, as by a poison letter that it took first."""
        deadline = time.monotonic() + START_S
        while not self.is_ready.wait(0.01) and self.process.poll() != -signal.SIGKILL:
            assert time.monotonic() < deadline and self.is_alive, self.complaints

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code

    def kill(self) -> float:
        """SIGKILL, and return when that was."""
        at = time.monotonic()
        self.send(signal.SIGKILL)
        self.wait()
        return at


@dataclass
class Crew:
    """Worker processes on one queue, with the ledgers of all that ever lived."""

    url: str
    ledger: Path
    config: dict[str, Any]
    workers: list[WorkerProcess] = field(default_factory=list)
    killed_at: dict[int, float] = field(default_factory=dict)
    """Process id → monotonic time of its SIGKILL by the test."""

    def start(self, count: int = 1, *, wait: bool = True) -> list[WorkerProcess]:
        """Start workers and wait until they are ready."""
        started = [
            WorkerProcess({"url": self.url, "ledger": str(self.ledger), "config": self.config}) for _ in range(count)
        ]
        self.workers += started
        for worker in started if wait else ():
            worker.wait_ready()
        return started

    def ready(self, count: int) -> list[WorkerProcess]:
        """Wait until so many workers are ready; return all that are, oldest first."""
        deadline = time.monotonic() + START_S
        while len(found := [worker for worker in self.workers if worker.is_ready.is_set()]) < count:
            assert time.monotonic() < deadline, [worker.complaints for worker in self.workers]
            time.sleep(0.005)
        return found

    def kill(self, worker: WorkerProcess) -> None:
        self.killed_at[worker.pid] = worker.kill()

    def replace_dead(self, *, wait: bool = True) -> int:
        """Start a worker for each that has ended, as a supervisor does; return how many."""
        dead = [worker for worker in self.workers if not worker.is_alive]
        for worker in dead:
            self.workers.remove(worker)
            worker.wait()
        self.start(len(dead), wait=wait)
        return len(dead)

    @contextmanager
    def at_work(self, count: int) -> Iterator["Crew"]:
        """Workers while the block runs; they are stopped by SIGTERM, and must end by themselves."""
        try:
            self.start(count)
            yield self
            for worker in self.workers:
                if worker.is_alive:
                    worker.wait_ready()  # before that, SIGTERM ends it as it ends any process
                worker.send(signal.SIGTERM)
            for worker in self.workers:
                assert worker.wait() in (0, -signal.SIGKILL), worker.complaints
        finally:
            for worker in self.workers:
                if worker.is_alive:
                    worker.send(signal.SIGCONT)
                    worker.kill()

    # -- what happened -------------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """Every start and end of a handler, by time."""
        found = [
            Line(*json.loads(text)) for path in self.ledger.glob("*.jsonl") for text in path.read_bytes().splitlines()
        ]
        return sorted(found, key=lambda line: line.at)

    def starts(self) -> Counter[int]:
        """Event number → runs."""
        return Counter(line.n for line in self.lines() if line.what == "start")

    def overlaps(self) -> list[tuple[Line, Line]]:
        """Runs of one letter that were begun while an earlier one in another living process had not ended.

        A run whose process was killed has ended with it; one that was stopped or blocked has not.
        """
        found = []
        open_runs: dict[int, Line] = {}
        for line in self.lines():
            before = open_runs.get(line.n)
            if line.what == "start":
                if before is not None and before.pid != line.pid and before.pid not in self.killed_at:
                    found.append((before, line))
                open_runs[line.n] = line
            elif before is not None and before.pid == line.pid:
                del open_runs[line.n]
        return found


class Leases:
    """Watches how long leases of dead workers stay, by looking at the pending lists past the engine."""

    def __init__(self, client: redis.Redis, queue: str, shards: int) -> None:
        self._client = client
        self._keys = [shard_key(queue, shard, "letters") for shard in range(shards)]

    def of(self, pid: int) -> int:
        """Letters leased to this process."""
        count = 0
        for key in self._keys:
            summary: Any = self._client.xpending(key, "workers")
            for row in summary["consumers"] or ():
                if row["name"].decode().rsplit("-", 2)[1] == str(pid):
                    count += int(row["pending"])
        return count

    def wait_until_gone(self, pid: int, within_s: float) -> float:
        """Return after how many seconds none was left, without those in which the machine stood still.

        Fails when that took longer than `within_s`.
        """
        began = time.monotonic()
        with watched(0.1) as stood_still:
            while True:
                left = self.of(pid)
                took = time.monotonic() - began - stood_still.total_s
                if not left:
                    return took
                assert took < within_s, f"{left} letters still leased to the dead process {pid} after {took:.2f} s"
                time.sleep(0.01)


def seed_of(name: str) -> int:
    """The seed of a test: DLQ_TEST_SEED, or a fixed one by its name; printed, so that a failure can be repeated."""
    seed = int(os.environ.get("DLQ_TEST_SEED") or sum(map(ord, name)))
    say(f"{name}: DLQ_TEST_SEED={seed}")
    return seed


def say(text: str) -> None:
    """Say what a run has shown: pytest shows it when the test fails, or with ``-s``."""
    print(text)  # noqa: T201 - said above


def seeded(name: str) -> random.Random:
    return random.Random(seed_of(name))
