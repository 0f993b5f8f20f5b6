"""Workers that die, stop, hang and leave: F1 to F5, F18, F30."""

import signal
import time

from tests.faults.rows.registry import row
from tests.support.harness.run import Promise, Run

SLOW_S = 12
"""How long handlers run whose leases are in the way."""


@row("F1", "workers are killed by SIGKILL", "cluster")
def killed(run: Run) -> None:
    run.begin(mix=[[3, "ok", 5], [1, "ok", 60], [1, "fail once", 5]])
    for _ in range(6):
        victim = run.chance.choice(run.workers)
        with run.fault("SIGKILL of a worker"):
            run.kill_worker(victim)
        run.resumes(time.monotonic())
        run.sleep(0.1, 0.6)
    for worker in run.workers:
        worker.wait_ready()
    run.finish()


@row("F1-wide", "a worker is killed; what lives has 1,500 leases before its own", "standalone")
def killed_behind_many(run: Run) -> None:
    """XAUTOCLAIM looks at 1,000 leases a call: without its cursor those behind them are never found."""
    run.settings = {"shards": 1, "concurrency": 1500, "batch_size": 500, "operation_timeout": 5.0}
    run.work(1)
    slow = [{"id": f"slow.{n}", "do": "ok", "ms": SLOW_S * 1000} for n in range(1500)]
    add(run, slow)
    run.wait(lambda: run.count("start") == 1500, 20, "the slow letters are running")
    [victim] = run.work(1, config={"concurrency": 20})
    add(run, [{"id": f"behind.{n}", "do": "ok", "ms": 800} for n in range(20)])
    run.wait(lambda: run.count("start") == 1520, 10, "those behind them are running")
    run.kill_worker(victim, replace=False)
    run.work(1, config={"concurrency": 20})

    def again() -> bool:
        run.history.follow()
        runs = [line for line in run.history.lines if line.what == "start" and line.event.startswith("behind")]
        return len({(line.event, line.token) for line in runs}) > 20

    # Not when the others have come to their end.
    until = min(line.at for line in run.history.lines if line.what == "start") + SLOW_S - 0.5
    left_s = until - time.monotonic()
    run.resumed_s.append(run.wait(again, left_s, "a letter of the dead worker is found behind 1,500 live leases"))
    run.finish()


def add(run: Run, events: list[dict]) -> None:
    """Capture events by the run itself."""
    ids = [event["id"] for event in events]
    for id in ids:
        run.journal.write("invoke", id)
    for id, letter in zip(ids, run.ask(run.queue.add_many(events, event_ids=ids, delay=0)), strict=True):
        run.journal.write("ok", id, letter)


@row("F2", "workers are stopped for three leases, and go on", "cluster")
def stopped(run: Run) -> None:
    run.begin(mix=[[1, "ok", 5], [1, "ok", 80]])
    for _ in range(2):
        victim = run.chance.choice(run.workers)
        with run.fault("SIGSTOP of a worker"):
            victim.send(signal.SIGSTOP)
            run.sleep(3 * run.lease_s)
            victim.send(signal.SIGCONT)
        run.resumes(time.monotonic())
        run.sleep(0.5)
    run.finish()


@row("F3", "a handler blocks its event loop for three leases", "standalone")
def blocked(run: Run) -> None:
    run.begin(mix=[[300, "ok", 5], [1, "block once", 3000]])
    run.wait(lambda: run.count("start", "attempt 1 crashes 1") > 0, 25, "a letter of the blocked worker runs again")
    run.wait(
        lambda: any("the event loop was blocked" in w.said() for w in run.workers), 10, "the blocked worker says so"
    )
    run.sleep(1)
    run.finish()


@row("F4", "handlers take ten leases; heartbeats are fine", "standalone")
def slow(run: Run) -> None:
    run.settings = {"concurrency": 100}
    run.promise = Promise(duplicated=0, crashed=0, errors=0)
    run.begin(mix=[[20, "ok", 5], [1, "ok", 10_000]])
    run.sleep(3)
    run.finish()


@row("F18", "poison: raises, hangs, kills, exits, takes all memory", "cluster")
def poison(run: Run) -> None:
    """Each is parked after its exact number of runs; its neighbours are not."""
    poisons = ("raise", "hang", "allocate", "kill", "exit")
    run.settings = {"max_retries": 2, "max_crashes": 3}
    run.begin(workers=2, mix=[[1, "ok", 5]])
    # A worker that a poison kills is replaced, as a supervisor would.
    for worker in run.workers[:]:
        run.kill_worker(worker, replace=False)
    run.work(2, memory_bytes=2 << 30)
    add(run, [{"id": do, "do": do, "ms": 1} for do in poisons])

    def all_parked() -> bool:
        run.replace_dead(memory_bytes=2 << 30)
        stats = run.stats()
        return stats is not None and stats.parked >= len(poisons)

    run.wait(all_parked, 60, "all poison is parked")
    run.finish()
    runs = {do: sum(line.what == "start" and line.event == do for line in run.history.lines) for do in poisons}
    run.remarks.append("runs: " + ", ".join(f"{do} {count}" for do, count in runs.items()))
    for do, count in runs.items():
        # As often as the policy allows; one that was leased beside the killer ran once more.
        low, high = (3, 3) if do == "kill" else (2, 3)
        if not low <= count <= high:
            run.failures.append(f"{do} ran {count} times, promised {low} to {high}")
    kept = {event for event, _ in run.open.values()}
    if kept != set(poisons):
        run.failures.append(f"parked are {sorted(kept)}")


@row("F30", "SIGTERM, and SIGKILL a random moment later", "cluster")
def shutdown_race(run: Run) -> None:
    run.begin(mix=[[2, "ok", 5], [1, "ok", 100]])
    for _ in range(5):
        victim = run.chance.choice(run.workers)
        with run.fault("SIGTERM, SIGKILL"):
            victim.send(signal.SIGTERM)
            run.sleep(run.chance.choice([0, 0.001, 0.003, 0.01, 0.03, 0.1]))
            run.kill_worker(victim)
        run.resumes(time.monotonic())
        run.sleep(0.1, 0.4)
    for worker in run.workers:
        worker.wait_ready()
    run.finish()
