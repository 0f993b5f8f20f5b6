"""Two faults at a time: the pairs that found most bugs elsewhere."""

import signal
import time

from tests.faults.rows.nodes import fail_over, zombie
from tests.faults.rows.registry import row
from tests.faults.rows.scripts import flushing
from tests.support.clusters import Cluster
from tests.support.harness.run import FAILOVER_S, Promise, Run

REPLICATED = {"durability": "replicated"}


@row("F1xF6", "workers are killed while a primary fails over", "cluster")
def killed_both(run: Run) -> None:
    run.settings, run.promise = REPLICATED, Promise(resumes_s=FAILOVER_S + run.lease_s)
    run.begin(workers=4, mix=[[3, "ok", 5], [1, "ok", 80]])
    for _ in range(2):
        run.kill_worker(run.workers[0])
        fail_over(run, run.chance.choice(run.shards))
        run.kill_worker(run.workers[0])
    for worker in run.workers:
        worker.wait_ready()
    run.resumes(time.monotonic())
    run.finish()


@row("F2xF7", "a worker is stopped while a primary hangs and is replaced; both go on", "cluster")
def stopped_both(run: Run) -> None:
    # What the stopped worker served is served by others after two heartbeats, in which the primary may be away.
    run.settings, run.promise = REPLICATED, Promise(resumes_s=FAILOVER_S + run.lease_s)
    run.begin(gap_s=0.05, mix=[[3, "ok", 5], [1, "ok", 80]])
    victim = run.chance.choice(run.workers)
    with run.fault("SIGSTOP of a worker"):
        victim.send(signal.SIGSTOP)
        zombie(run, run.chance.choice(run.shards))
        victim.send(signal.SIGCONT)
    run.resumes(time.monotonic())
    run.sleep(1)
    run.finish()


@row(
    "F6xF9",
    "a primary is killed in the middle of a slot migration, which is then brought to its end",
    "cluster",
    place=Cluster,
)
def killed_while_moving(run: Run) -> None:
    run.settings, run.promise = REPLICATED | {"operation_timeout": 5.0}, Promise(resumes_s=None)
    run.begin(lanes=8)
    slot = run.slots()[1]
    primaries = run.cluster.primaries()
    source = run.cluster.primary_of(slot)
    target = primaries[(primaries.index(source) + 1) % len(primaries)]
    [heir] = run.cluster.replicas_of(source)
    shards = run.shards_of(source)
    with run.fault("SIGKILL of a primary amid a migration", undoes=shards):
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        _migrate(source, target, slot, 2)
        killed_at = time.monotonic()
        source.kill()
        run.resumes(killed_at, [shard for shard in shards if shard != 0])
        run.wait(heir.is_primary, 10, "the replica is the primary")
        heir.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", heir.id)
        while _migrate(heir, target, slot, 5):
            pass
        for node in (target, heir, *(node for node in primaries if node not in (source, target))):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        source.start()
        run.cluster.wait_until_ok()
    run.resumes(time.monotonic())
    run.finish()


def _migrate(source, target, slot: int, keys: int) -> int:
    found = source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, keys)
    if found:
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)
    return len(found)


@row("F13xF6", "no memory is left, and a primary dies", "cluster")
def full_and_killed(run: Run) -> None:
    run.settings, run.promise = REPLICATED, Promise(resumes_s=None)
    run.begin(mix=[[3, "ok", 5], [1, "fail once", 30]])
    with run.fault("maxmemory below what is used"):
        for node in run.cluster.nodes:
            node.client.config_set("maxmemory", "1mb")
        run.wait(lambda: run.count("fail", "queue_full"), 10, "a producer hears QueueFull")
        primary = run.primary(0)
        with run.fault("SIGKILL of a primary", undoes=run.shards_of(primary)):
            [heir] = run.cluster.replicas_of(primary)
            primary.kill()
            run.wait(heir.is_primary, 10, "the replica is the primary")
            run.sleep(0.5)
            primary.start()
            run.cluster.wait_until_ok()
        for node in run.cluster.nodes:
            node.client.config_set("maxmemory", 0)
    run.resumes(time.monotonic())
    run.finish()


@row("F19xF6", "scripts are forgotten all the time, and a primary dies", "cluster")
def forgotten_and_killed(run: Run) -> None:
    run.settings, run.promise = REPLICATED, Promise(resumes_s=FAILOVER_S)
    run.begin()
    with flushing(run):
        fail_over(run, run.chance.choice(run.shards))
        run.sleep(0.5)
    run.finish()
