"""How letters fare while something else happens: at what rate they run, how late, and on which cores."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import quantiles

from tests.support.harness.actors import Actor
from tests.support.harness.run import Run
from tests.support.servers import Server

__all__ = ["Paces", "cores_apart"]


@contextmanager
def cores_apart(run: Run, attacker_and_service: Sequence[int]) -> Iterator[str]:
    """Give the service and who attacks it one core, and Redis, producers and workers the other: as on two machines.

    What they still share is the queue: without this the row would measure how two cores are shared.
    """
    cores = sorted(os.sched_getaffinity(0))
    others = [actor.process.pid for actor in (*run.workers, *run.producers)]
    assert isinstance(run.place, Server)
    if len(cores) > 1:
        for pid in attacker_and_service:
            os.sched_setaffinity(pid, cores[:1])
        for pid in (*others, run.place.pid):
            os.sched_setaffinity(pid, cores[1:])
    try:
        yield f"{len(cores)} cores" if len(cores) > 1 else "one core"
    finally:
        os.sched_setaffinity(run.place.pid, cores)


class Paces:
    """How letters fare that a producer captures at a fixed rate: how many a second, and how long until they run."""

    def __init__(self, run: Run, producer: Actor, begin: float, end: float) -> None:
        run.history.follow()
        captured: dict[str, float] = {}
        started: dict[str, float] = defaultdict(lambda: float("inf"))
        for line in run.history.lines:
            if line.what == "invoke" and line.actor == producer.name and begin <= line.at < end:
                captured.setdefault(line.event, line.at)
            elif line.what == "start":
                started[line.event] = min(started[line.event], line.at)
        lags = [started[event] - at for event, at in captured.items()]
        self.missing = sum(lag == float("inf") for lag in lags)
        lags = [lag for lag in lags if lag < float("inf")]
        self.rate = len(lags) / (end - begin)
        hundredths = quantiles(lags, n=100)
        self.p50_s, self.p99_s = hundredths[49], hundredths[98]

    def __str__(self) -> str:
        return f"{self.rate:.0f} letters/s, lag p50 {self.p50_s * 1000:.1f} ms, p99 {self.p99_s * 1000:.1f} ms"
