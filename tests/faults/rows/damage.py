"""What strangers delete, damage and put in: F20, F22, F28."""

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.faults.rows.registry import row
from tests.support.harness.run import RESUMES_S, Promise, Run


@row("F20-group", "the consumer groups are destroyed, ten times", "standalone")
def destroyed_groups(run: Run) -> None:
    run.promise = Promise(resumes_s=2.0)
    run.begin(mix=[[3, "ok", 5], [1, "ok", 80]])
    with run.fault("XGROUP DESTROY"):
        for _ in range(10):
            for shard in run.shards:
                run.server.client.xgroup_destroy(run.key(shard, "letters"), "workers")
            run.sleep(0.1)
    run.resumes(time.monotonic())
    run.finish()


@row("F20-type", "keys are of another type for a while", "standalone")
def other_types(run: Run) -> None:
    """A script that fails half-way leaves a letter in two states, never in none."""
    run.promise = Promise(resumes_s=2.0 + 2.0, orphaned=0)
    run.begin(mix=[[1, "ok", 5], [2, "fail once", 5]])
    for name in ("schedule", "history", "suspects", "groups"):
        with run.fault(f"{name} is a string"):
            key = run.key(0, name)
            saved = run.server.client.dump(key)
            run.server.client.set(key, "x")
            run.sleep(0.7)
            # What stood there is put back: letters whose only row was lost would rightly be orphans.
            pipe = run.server.client.pipeline(transaction=True)
            pipe.delete(key)
            if saved:
                pipe.restore(key, 0, saved)
            pipe.execute()
        run.resumes(time.monotonic())
    run.finish()


@row("F20-deleted", "a stream is deleted, and later everything: what is lost is told", "standalone")
def deleted(run: Run) -> None:
    run.promise = Promise(lost=None, lost_externally=None, resumes_s=2.0)
    run.begin()
    waiting = 20
    run.ask(run.queue.add_many([{"id": "waits"}] * waiting, delay=600))
    run.wait(lambda: run.server.client.zcard(run.key(0, "schedule")) > 0, 10, "the intake has passed them")
    there = run.server.client.zcard(run.key(0, "schedule"))
    with run.fault("DEL of a stream", undoes=[0]):
        run.server.client.delete(run.key(0, "letters"))
    run.resumes(time.monotonic())
    run.wait(lambda: told(run) >= there, 10, f"{there} scheduled letters that were deleted are told")
    run.remarks.append(f"{there} letters were scheduled in the stream that was deleted, {told(run)} are told as lost")
    with run.fault("FLUSHALL", undoes=run.shards):
        run.server.client.flushall()
    run.resumes(time.monotonic())
    run.finish()


def told(run: Run) -> int:
    """How many letters the queue says that it has lost to strangers."""
    stats = run.stats()
    return stats.totals["lost_externally"] if stats else 0


def books_are_even(run: Run) -> bool:
    """Whether each entry of the streams is counted as captured."""
    stats = run.stats()
    if stats is None:
        return False
    ended = sum(stats.totals[name] for name in ("resolved", "discarded", "expired", "lost_externally"))
    return stats.totals["captured"] == ended + stats.open


@row("F22", "entries of strangers, broken ones too; leased entries are deleted", "standalone")
def foreign(run: Run) -> None:
    """Strangers' letters without a payload are parked; what was deleted is counted, and is all that is lost."""
    run.promise = Promise(lost=None, lost_externally=None, resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [1, "ok", 300]])
    client = run.server.client
    broken, theirs = 20, set[bytes]()
    with run.fault("strangers"):
        for n in range(broken):
            fields: dict[bytes, bytes] = {run.chance.randbytes(3): run.chance.randbytes(run.chance.randrange(30))}
            if n % 3 == 0:
                fields = {b"v": b"1", b"payload": run.chance.randbytes(20), b"content_type": b"application/json"}
            theirs.add(client.xadd(run.key(run.chance.choice(run.shards), "letters"), fields))
            run.journal.write("foreign")
        # One that passes for the engine's own is counted with the next balance: a letter deleted before that would
        # make up for it, and neither be told.
        run.wait(lambda: books_are_even(run), 20, "the strangers' entries are counted")
        deletions = 0
        for shard in run.shards:
            leased = [
                row["message_id"] for row in client.xpending_range(run.key(shard, "letters"), "workers", "-", "+", 9)
            ]
            for id in [id for id in leased if id not in theirs][:2]:
                run.journal.write("deleted", letter=f"{shard}-{id.decode()}")
                deletions += client.xdel(run.key(shard, "letters"), id)
    run.resumes(time.monotonic())
    run.sleep(1)
    run.finish(until=lambda stats: stats.open == stats.parked == broken)
    run.remarks.append(
        f"{len(run.open)} of {broken} strangers parked; {deletions} deleted, {run.totals['lost_externally']} told"
    )
    if len(run.open) != broken:
        run.failures.append(f"{len(run.open)} of {broken} broken entries are parked")
    if run.figures.lost > run.totals["lost_externally"] or run.totals["lost_externally"] > deletions:
        run.failures.append(f"{run.figures.lost} lost, {deletions} deleted, told {run.totals['lost_externally']}")


@row("F28", "rows, groups, marks and whole indexes are deleted or made up", "standalone")
def damaged(run: Run) -> None:
    run.settings = {"max_retries": 4}
    run.promise = Promise(resumes_s=RESUMES_S, lost_externally=None)
    run.begin(mix=[[3, "ok", 5], [2, "fail once", 5], [1, "ok", 100]])
    client = run.server.client
    strokes: list[Callable[[Run, int], Any]] = [
        *(partial(_delete, name) for name in ("schedule", "suspects", "state", "history", "groups", "group_info")),
        lambda run, shard: client.zadd(run.key(shard, "schedule"), {"1-1": 1, "99-1": 5}),
        lambda run, shard: client.zadd(run.key(shard, "parked"), {"1-2": 1}),
        lambda run, shard: client.hdel(run.key(shard, "meta"), "mark"),
        lambda run, shard: client.xgroup_setid(run.key(shard, "letters"), "workers", "0-0"),
        lambda run, shard: client.hset(run.key(shard, "state"), "1-3", b"\xff nonsense"),
    ]
    with run.fault("damage"):
        for _ in range(40):
            run.chance.choice(strokes)(run, run.chance.choice(run.shards))
            run.sleep(0.05)
    run.resumes(time.monotonic())
    reported = violations(run)
    run.sleep(2)
    run.finish()
    run.remarks.append(
        f"verify told {reported} made-up rows, and none at the end; {run.totals['orphaned']} letters "
        "in no state were found again"
    )
    if not reported:
        run.failures.append("verify did not tell of a row that names no letter")


def violations(run: Run) -> int:
    """Make rows up while nobody repairs, and return how many `verify` tells."""
    for worker in run.workers:
        worker.send(signal.SIGSTOP)
    run.server.client.zadd(run.key(0, "parked"), {"1-7": 1, "1-8": 1})
    report = run.ask(run.queue.verify())
    for worker in run.workers:
        worker.send(signal.SIGCONT)
    return len(report.violations)


def _delete(name: str, run: Run, shard: int) -> None:
    run.server.client.delete(run.key(shard, name))
