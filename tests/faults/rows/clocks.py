"""Clocks that jump, and one that is ahead of the others: F16."""

import glob
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import override

from tests.faults.rows.nodes import compare_answers, fail_over
from tests.faults.rows.registry import Skip, row
from tests.support.clusters import Cluster
from tests.support.harness.run import FAILOVER_S, RESUMES_S, Promise, Run
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.local_node import LocalNode

HOUR_S = 3600


def faketime() -> str:
    """The library that fakes clocks; raises `Skip` without it."""
    places = [os.environ.get("DLQ_TEST_FAKETIME", ""), *glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")]
    for place in places:
        if place and os.path.exists(place):
            return place
    raise Skip("needs libfaketime (Debian: libfaketime; or its path in DLQ_TEST_FAKETIME)")


@contextmanager
def faked(clock_file: Path) -> Iterator[None]:
    """What is started in the block reads its time from that file; its monotonic clock is left alone."""
    fake = {
        "LD_PRELOAD": faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock_file),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    before = {name: os.environ.get(name) for name in fake}
    os.environ.update(fake)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def set_clock(clock_file: Path, ahead_s: int) -> None:
    """Set it at once: nobody reads half a file."""
    new = clock_file.with_suffix(".new")
    new.write_text(f"{ahead_s:+d}\n")
    new.rename(clock_file)


class ClockServer(Server):
    """A server whose clock a run sets."""

    @override
    def start(self) -> None:
        self.set_clock(0)
        with faked(self.folder / "clock"):
            super().start()

    def set_clock(self, ahead_s: int) -> None:
        set_clock(self.folder / "clock", ahead_s)


class SkewedCluster(Cluster):
    """A cluster whose replicas are ahead (below 0: behind), as long as they are not started again."""

    def __init__(self, name: str, clock_file: Path, ahead_s: int) -> None:
        super().__init__(name)
        self._clock_file = clock_file
        set_clock(clock_file, ahead_s)

    @override
    def _start_node(self) -> LocalNode:
        if len(self.nodes) < 3:
            return super()._start_node()
        with faked(self._clock_file):
            return super()._start_node()


@contextmanager
def clock(name: str) -> Iterator[Server]:
    faketime()
    with ClockServer(name) as server:
        yield server


def skewed(ahead_s: int) -> Callable[[str], AbstractContextManager[Cluster]]:
    @contextmanager
    def place(name: str) -> Iterator[Cluster]:
        faketime()
        with (
            tempfile.TemporaryDirectory(prefix="uno-clock-") as folder,
            SkewedCluster(name, Path(folder, "ahead"), ahead_s) as made,
        ):
            yield made

    return place


def clock_of(run: Run) -> ClockServer:
    assert isinstance(run.place, ClockServer)
    return run.place


@row("F16", "the server's clock jumps an hour ahead and back, and an hour back and ahead", "standalone", place=clock)
def clock_jumps(run: Run) -> None:
    """A worker dies before each jump, and retries are due after it: both go on by the clock that comes."""
    run.settings = {"retry_delay": 0.6}
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 300], [2, "fail once", 5]])
    for ahead_s in (HOUR_S, 0, -HOUR_S, 0):
        with run.fault(f"SIGKILL of a worker, clock at {ahead_s:+d} s"):
            run.kill_worker(run.chance.choice(run.workers))
            clock_of(run).set_clock(ahead_s)
            run.resumes(time.monotonic())
            run.sleep(1.2)
    for worker in run.workers:
        worker.wait_ready()
    run.finish()


def fail_over_to(run: Run, ahead_s: int) -> None:
    """Kill a primary; its heir's clock is so far ahead. Each event is captured again later, mostly by the heir."""
    run.settings, run.promise = {"durability": "replicated"}, Promise(resumes_s=FAILOVER_S + run.lease_s)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 300], [2, "fail once", 5]], again_s=3)
    heir = run.cluster.replicas_of(run.primary(0))[0]
    found_s = heir.client.time()[0] - time.time()
    if abs(found_s - ahead_s) > 60:
        run.failures.append(f"the replica is {found_s:.0f} s ahead: the row shows nothing")
    fail_over(run)
    run.finish()
    compare_answers(run)


@row("F16-skew", "a primary dies, and its replica's clock is half an hour ahead", "cluster", place=skewed(HOUR_S // 2))
def skewed_replica(run: Run) -> None:
    fail_over_to(run, HOUR_S // 2)


@row("F16-behind", "a primary dies, and its replica's clock is an hour behind", "cluster", place=skewed(-HOUR_S))
def replica_behind(run: Run) -> None:
    fail_over_to(run, -HOUR_S)


@row("F16xF2", "a worker is stopped for three leases while the clock jumps", "standalone", place=clock)
def clock_jumps_while_stopped(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [2, "ok", 200]])
    for ahead_s in (HOUR_S, 0):
        victim = run.chance.choice(run.workers)
        with run.fault(f"SIGSTOP, clock at {ahead_s:+d} s"):
            victim.send(signal.SIGSTOP)
            run.sleep(0.3)
            clock_of(run).set_clock(ahead_s)
            run.sleep(3 * run.lease_s)
            victim.send(signal.SIGCONT)
        run.resumes(time.monotonic())
        run.sleep(0.5)
    run.finish()
