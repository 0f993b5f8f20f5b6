"""Memory that runs out, and a server that may throw letters away: F13, F14."""

import time

from tests.faults.rows.registry import row
from tests.faults.rows.workers import add
from tests.support.harness.actors import Actor
from tests.support.harness.run import RESUMES_S, Promise, Run


@row("F13", "no memory is left: captures are refused, the rest goes on", "standalone")
def no_memory(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    run.begin(mix=[[3, "ok", 5], [1, "fail once", 5]])
    add(run, [{"id": f"kept.{n}", "do": "fail once", "ms": 200} for n in range(200)])
    with run.fault("maxmemory below what is used"):
        began = time.monotonic()
        run.server.client.config_set("maxmemory", "1mb")
        run.wait(lambda: run.count("fail", "queue_full"), 10, "a producer hears QueueFull")
        run.sleep(1.5)
        run.server.client.config_set("maxmemory", 0)
    run.resumes(time.monotonic())
    run.finish()
    ended = sum(
        line.what == "settled" and line.asked_at > began + 0.1 and line.note.endswith("OK") and line.at < began + 1.5
        for line in run.history.lines
    )
    run.remarks.append(f"{ended} letters settled while memory was full")
    if not ended:
        run.failures.append("nothing was settled while memory was full")


@row("F14", "the eviction policy is changed while work goes on", "standalone")
def evicting(run: Run) -> None:
    run.promise = Promise(lost_externally=None)
    run.begin()
    with run.fault("allkeys-lru"):
        run.server.client.config_set("maxmemory-policy", "allkeys-lru")
        findings = run.ask(run.queue.health())
        if not any(finding.check == "eviction" and not finding.ok for finding in findings):
            run.failures.append("health does not see the policy")
        took = run.wait(
            lambda: all("maxmemory-policy" in worker.said() for worker in run.workers),
            30,
            "every worker has logged an error",
        )
        strict = Actor("worker", run.settings_of("worker", {"config": {"strict": True}}))
        if strict.wait() == 0 or "DLQ_STRICT" not in strict.said():
            run.failures.append(f"a strict worker starts: {strict.said()}")
        run.server.client.config_set("maxmemory-policy", "noeviction")
    run.remarks.append(f"health sees it at once, every running worker after {took:.1f} s; a strict one does not start")
    run.finish()
