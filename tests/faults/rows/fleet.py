"""Many workers on many shards, coming and going all the time."""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.faults.rows.registry import Skip, row
from tests.support.harness.actors import Actor
from tests.support.harness.run import Promise, Run

SHARDS = 64
WORKERS = 32
TOGETHER = 4
"""Processes that start at a time: a machine with two cores has enough to do with them."""

LEASE_S = 9.0
HEARTBEAT_S = LEASE_S / 3
CHANGES_S = 120.0
SLACK_S = 3.0
"""On top of what is promised: for two cores with 40 processes, and for heirs that die before they have begun."""

LANES = 3
"""Connections of a worker to a node at most, besides one for each shard that it waits for."""

LOOK_EVERY_S = 0.2

ESTABLISHED = "01"
"""State of a connection in /proc/net/tcp."""


@row("64-shards", "64 shards, 32 workers that join, leave and die at random for 2 minutes", "cluster")
def coming_and_going(run: Run) -> None:
    if not Path("/proc/net/tcp").exists():
        raise Skip("needs /proc, to count connections")
    run.settings = {"shards": SHARDS, "lease_seconds": LEASE_S, "concurrency": 4, "operation_timeout": 5.0}
    run.promise = Promise(errors=0, resumes_s=2 * HEARTBEAT_S + SLACK_S)
    run.begin(producers=1, workers=TOGETHER, warm=SHARDS, lanes=2, gap_s=0.2)
    while len(run.workers) < WORKERS:
        run.work(TOGETHER)
    watch = Watch(run)
    watch.until_even()
    strokes = Counter(come_and_go(run, watch))
    for worker in run.workers:
        worker.wait_ready()
    watch.until_even()
    for worker in watch.left:
        if code := worker.wait():
            run.failures.append(f"{worker} left with {code}: {worker.said()}")
    run.resumed_s.append(watch.longest_s)
    run.remarks.append(
        f"{strokes['join']} joined, {strokes['leave']} left, {strokes['kill']} were killed; no shard was without a "
        f"living worker for more than {watch.longest_s:.1f} s; connections beyond {LANES} to a node and one for each "
        f"shard of a worker: {max(watch.beyond, 0)}"
    )
    if watch.beyond > 0:
        run.failures.append(f"a worker had {watch.beyond} connections too many")
    run.finish()


def come_and_go(run: Run, watch: "Watch") -> Iterator[str]:
    """Have workers join, leave and die for as long as the row says; yield what each did."""
    deadline = time.monotonic() + CHANGES_S
    with run.fault("workers come and go"):
        while time.monotonic() < deadline:
            change_at = time.monotonic() + run.chance.uniform(0.5, 2.5)
            while time.monotonic() < change_at:
                watch.look()
            begun = [worker for worker in run.workers if worker.has_begun]
            away = WORKERS - len(run.workers)
            stroke = run.chance.choice(["leave", "kill"] if away == 0 else ["leave", "kill", *away * ["join"]])
            if stroke == "join":
                run.work(1, wait=False)
            elif stroke == "leave":
                watch.leaves(run.chance.choice(begun))
            else:
                run.kill_worker(run.chance.choice(begun), replace=False)
            yield stroke


class Watch:
    """Looks at who serves what, by what workers tell, and at their connections."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._without_since = dict.fromkeys(range(SHARDS), time.monotonic())
        self._parts: dict[int, tuple[int, ...]] = {}
        """Process id → shards that it serves, of workers that live and are not leaving."""
        looks = int(HEARTBEAT_S / LOOK_EVERY_S)
        self._told: deque[dict[int, tuple[int, ...]]] = deque(maxlen=2 * looks)
        self._held: deque[dict[int, list[int]]] = deque(maxlen=looks)
        """Process id → the port of each of its connections, of the last looks."""
        self._is_counting = False
        self.left: list[Actor] = []
        self.longest_s = 0.0
        """How long any shard was without a worker that lives, at most."""
        self.beyond = -100
        """Connections of a worker beyond one for each of its shards and three to each node, at most."""

    def leaves(self, worker: Actor) -> None:
        """SIGTERM: from here on it takes nothing more."""
        worker.send(signal.SIGTERM)
        self._run.workers.remove(worker)
        self.left.append(worker)

    def until_even(self) -> None:
        """Wait until every shard has a worker and every worker a shard; from the first time on, gaps are counted."""
        self._run.wait(self._is_even, 60, "the shards are shared evenly")
        self._is_counting = True

    def _is_even(self) -> bool:
        self.look()
        served = {shard for part in self._parts.values() for shard in part}
        return len(self._parts) == len(self._run.workers) and len(served) == SHARDS

    def look(self) -> None:
        """Note which shards are served now, and count connections."""
        living = {worker.process.pid for worker in self._run.workers}
        roster = self._run.ask(self._run.queue.workers())
        self._parts = {info.pid: info.shards for info in roster if info.pid in living}
        served = {shard for part in self._parts.values() for shard in part}
        now = time.monotonic()
        for shard in range(SHARDS):
            if shard in served or not self._is_counting:
                self._without_since[shard] = now
            self.longest_s = max(self.longest_s, now - self._without_since[shard])
        self._told.append(self._parts)
        if self._is_counting:
            self._count_connections()
        time.sleep(LOOK_EVERY_S)

    def _count_connections(self) -> None:
        """Judge the connections that lasted for a heartbeat by what was told around it.

        A read that waits for a shard goes on for a second after that was given up, perhaps before anybody was told.
        """
        if len(self._held) == self._held.maxlen:
            for pid in set.intersection(*map(set, self._held)):
                shards = {shard for parts in self._told for shard in parts.get(pid, ())}
                lasting = min(len(held[pid]) - LANES * len(set(held[pid])) for held in self._held)
                self.beyond = max(self.beyond, lasting - len(shards))
        sockets = sockets_to(node.port for node in self._run.cluster.nodes)
        self._held.append({pid: [sockets[inode] for inode in inodes_of(pid) & sockets.keys()] for pid in self._parts})


def sockets_to(ports: Iterable[int]) -> dict[str, int]:
    """Inodes of this machine's connections to these ports → the port."""
    wanted = {f"{port:04X}": port for port in ports}
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        port = wanted.get(words[2].partition(":")[2])
        if words[3] == ESTABLISHED and port is not None:
            found[words[9]] = port
    return found


def inodes_of(pid: int) -> set[str]:
    """Inodes of a process's sockets; none when it has ended."""
    found = set()
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").removesuffix("]"))
    return found
