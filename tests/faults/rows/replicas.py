"""Replicas of the service that die, stop and hang under their clients: F31."""

import signal
import time
from typing import Any, Final

from tests.faults.rows.nodes import REPLICATED
from tests.faults.rows.registry import row
from tests.support.harness.replicas import Replicas
from tests.support.harness.run import Promise, Run

TIMEOUT_S = 1.0
"""Of clients: a try takes no longer, a call at most twice that."""

GRACE_S = 4.0
"""DLQ_SHUTDOWN_GRACE of replicas."""

AGAIN_S = 2 * TIMEOUT_S + 2.0
"""Within which every client is answered again once replicas serve: the call that failed, the next, two busy cores."""

SECRET = "the-payload-of-a-client"
"""What each payload has in it, and no log line."""

LOAD: Final[dict[str, Any]] = {
    "lanes": 3,
    "gap_s": 0.1,
    "batch": 20,
    "also": {"note": SECRET},
    "config": {"operation_timeout": TIMEOUT_S},
}


def strike(run: Run, replicas: Replicas) -> str:
    """Have one replica killed, stopped in order, or hang for longer than clients wait; answer which."""
    replica = run.chance.choice(replicas.all)
    how = run.chance.choices(("SIGKILL", "SIGTERM", "SIGSTOP"), (3, 2, 2))[0]
    with run.fault(f"{how} of a replica"):
        if how == "SIGKILL":
            replicas.kill(replica)
        elif how == "SIGTERM":
            replicas.stop(replica, within_s=GRACE_S)
        else:
            replicas.hang(replica, TIMEOUT_S * run.chance.uniform(1.2, 2.0))
    return how


def all_answered(run: Run, since: float) -> float:
    """Wait until every client has been acknowledged a capture that it asked for after `since`; seconds from then."""
    missing = {client.name for client in run.producers}
    asked: dict[tuple[str, str], float] = {}
    answered_at = since
    seen = 0

    def look() -> bool:
        nonlocal seen, answered_at
        run.history.follow()
        for line in run.history.lines[seen:]:
            if line.what == "invoke":
                asked[line.actor, line.event] = line.at
            elif line.what == "ok" and line.actor in missing and asked.get((line.actor, line.event), 0.0) > since:
                missing.discard(line.actor)
                answered_at = max(answered_at, line.at)
        seen = len(run.history.lines)
        return not missing

    run.wait(look, 30, "every client is answered again")
    return answered_at - since


def remark(run: Run, replicas: Replicas, strokes: list[str]) -> None:
    """Say what happened, and look at what replicas have logged."""
    spooled = sum(line.what == "ok" and line.letter.startswith("spooled:") for line in run.history.lines)
    took = ", ".join(f"{strokes.count(how)} {how}" for how in sorted(set(strokes)))
    took += f" (to its end {max(replicas.ends_s):.1f} s at most)" if replicas.ends_s else ""
    run.remarks.append(
        f"{took}; {run.figures.recovered} captures of unknown outcome resolved, "
        f"{run.figures.unresolved} not repeated, {spooled} spooled"
    )
    replicas.check_logs(SECRET)


def four_clients(run: Run, replicas: Replicas) -> None:
    """Start two that spool, and two that do not, of whom one leaves it at what the client itself repeats."""
    replicas.clients(1, wait=False, **LOAD)
    replicas.clients(1, wait=False, repeats=False, **LOAD)
    spooling = {"spool_dir": str(run.folder / "spool"), "operation_timeout": TIMEOUT_S}
    replicas.clients(2, **(LOAD | {"config": spooling}))
    all_answered(run, time.monotonic())


@row("F31", "replicas of the service are killed, stopped and hang; four clients capture", "cluster")
def killed_replicas(run: Run) -> None:
    run.settings, run.promise = {"shutdown_grace": GRACE_S}, Promise(resumes_s=AGAIN_S)
    run.work(2)
    with Replicas(run, 3) as replicas:
        four_clients(run, replicas)
        strokes = []
        for _ in range(8):
            run.sleep(0.1, 0.5)
            strokes.append(strike(run, replicas))
        replicas.wait_ready()
        run.resumed_s.append(all_answered(run, time.monotonic()))
        run.finish()
        remark(run, replicas, strokes)


@row("F31-all", "every replica at once is away, again and again: what has a spool goes on", "standalone")
def all_away(run: Run) -> None:
    run.settings, run.promise = {"shutdown_grace": GRACE_S}, Promise(resumes_s=AGAIN_S)
    run.work(2)
    with Replicas(run, 3) as replicas:
        four_clients(run, replicas)
        strokes = []
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            run.sleep(0.5, 1.0)
            with run.fault(f"{number.name} of every replica"):
                if number is signal.SIGKILL:
                    replicas.kill(*replicas.all)
                else:
                    replicas.stop(*replicas.all, within_s=GRACE_S)
                replicas.wait_ready()
            run.resumed_s.append(all_answered(run, time.monotonic()))
            strokes += [number.name] * len(replicas.all)
        run.finish()
        remark(run, replicas, strokes)


@row("F31-cut", "replicas are killed between a put and its reply, and replies are lost on their way", "standalone")
def cut_off(run: Run) -> None:
    run.settings, run.promise = {"shards": 2}, Promise(resumes_s=AGAIN_S)
    run.work(2)
    with Replicas(run, 2) as replicas:
        replicas.clients(2, **(LOAD | {"gap_s": 0.03}))
        all_answered(run, time.monotonic())
        for _ in range(3):
            with run.fault("replies lost"):
                replicas.relay.lose_replies("POST /v1/letters/batch", 5)
                run.wait(lambda: not replicas.relay.replies_to_lose, 10, "replies are lost")
            with run.fault("SIGKILL of a replica"):
                replicas.kill(run.chance.choice(replicas.all))
            run.sleep(0.3)
        replicas.wait_ready()
        run.resumed_s.append(all_answered(run, time.monotonic()))
        run.finish()
        remark(run, replicas, ["SIGKILL"] * 3)


@row("F31xF6", "replicas are killed, and a primary dies; captures replicated", "cluster")
def replicas_and_primary(run: Run) -> None:
    run.settings, run.promise = REPLICATED | {"shutdown_grace": GRACE_S}, Promise(resumes_s=None)
    run.work(2)
    with Replicas(run, 3) as replicas:
        four_clients(run, replicas)
        primary = run.primary(run.chance.choice(run.shards))
        shards, [heir] = run.shards_of(primary), run.cluster.replicas_of(primary)
        strokes = ["SIGKILL"]
        with run.fault("SIGKILL of a primary, and of a replica", undoes=shards):
            primary.kill()
            replicas.kill(run.chance.choice(replicas.all))
            run.sleep(0.2)
        strokes += [strike(run, replicas) for _ in range(2)]
        run.wait(heir.is_primary, 15, "the replica of the primary is the primary")
        primary.start()
        run.cluster.wait_until_ok()
        replicas.wait_ready()
        run.resumed_s.append(all_answered(run, time.monotonic()))
        run.finish()
        remark(run, replicas, strokes)
