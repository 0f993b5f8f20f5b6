"""Networks that lose, delay, cut and separate: F5, F11, F12, F17, F25, F26."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.rows.nodes import MIX, ON_THEIR_WAY_S, compare_answers, fail_over, window_remark
from tests.faults.rows.registry import need, row
from tests.faults.rows.workers import add
from tests.support.clusters import Cluster
from tests.support.harness.run import FAILOVER_S, RESUMES_S, Promise, Run
from tests.support.harness.wires import CuttableCluster, Wires, own_network


@row("F5", "the heartbeats of a worker are cut off, nothing else", "standalone")
def heartbeats_cut(run: Run) -> None:
    with run.wire() as wire:
        run.begin(workers=2, mix=[[5, "ok", 5], [1, "ok", 1500]])
        run.url = wire.url
        run.work(1)
        run.sleep(0.5)
        with run.fault("heartbeats cut"):
            wire.silence("extend")
            run.sleep(3 * run.lease_s)
            wire.heal()
        run.resumes(time.monotonic())
        run.finish()
    cancelled = sum(line.what == "end" and line.note == "cancelled" for line in run.history.lines)
    run.remarks.append(f"{cancelled} handlers were cancelled before another worker had their letters")


@row("F11", "a primary is out of its clients' reach, silent or reset; chunks pass by half", "cluster")
def unreachable(run: Run) -> None:
    run.promise = Promise(resumes_s=RESUMES_S)
    with Wires(run.cluster, seed=run.seed) as wires:
        run.remap = wires.remap
        run.begin(lanes=8)
        primary = run.primary(0)
        shards = run.shards_of(primary)
        others = [shard for shard in run.shards if shard not in shards]
        for seconds in (1.0, 6.0):
            with run.fault(f"{seconds:g} s of silence"):
                wires.to(primary).silence()
                run.sleep(seconds / 2)
                run.resumes(time.monotonic(), others)  # the other shards go on meanwhile
                run.sleep(seconds / 2)
                wires.to(primary).heal()
            run.resumes(time.monotonic())
        with run.fault("resets, and halves of chunks"):
            for wire in wires.all():
                wire.halves = 0.01
            for _ in range(10):
                run.chance.choice(wires.all()).reset_all()
                run.sleep(0.2)
            for wire in wires.all():
                wire.halves = 0.0
        run.resumes(time.monotonic())
        run.finish()


@row("F11-late", "settles of a worker that has died since arrive when others have its letters", "standalone")
def late_settles(run: Run) -> None:
    """What a fence is for. Nobody is told how they are answered: who has the letters notices, or must not."""
    with run.wire() as wire:
        run.begin(workers=2, gap_s=0.2, mix=[[1, "ok", 400]])
        direct, run.url = run.url, wire.url
        [victim] = run.work(1)
        run.wait(lambda: run.count_of(victim.name, "settled"), 10, "it has settled letters")
        with run.fault("settles held up"):
            wire.hold("settle")
            run.wait(lambda: wire.holding, 10, "a settle is on its way")
            run.kill_worker(victim, replace=False)
            held = run.unanswered(victim)
            run.wait(lambda: run.are_taken_again(held), 15, "another worker has a letter whose settle is on its way")
            wire.release()
        run.url = direct
        run.resumes(time.monotonic())
        run.sleep(1)
        run.finish()


@row("F11-own", "settles arrive when the same worker, the only one, has got the letters again", "standalone")
def own_late_settles(run: Run) -> None:
    """What the token in a fence is for: the consumer is the same.

    The worker has given up the settles that are on their way, or it would not have been given another letter.
    """
    with run.wire() as wire:
        run.settings = {"shards": 1, "operation_timeout": 1.0, "concurrency": 10}
        run.url = wire.url
        [worker] = run.work(1)
        add(run, [{"id": "early", "do": "ok", "ms": 5}])  # or the late settle would not find its script
        run.wait(lambda: run.count("settled"), 10, "a settle has been answered")
        run.sleep(1.5 * run.lease_s)  # its reclaimer has to be in touch for a lease
        with run.fault("settles held up, heartbeats cut"):
            wire.hold("settle")
            add(run, [{"id": f"late.{n}", "do": "ok", "ms": 1500} for n in range(3)])
            run.wait(lambda: wire.holding, 10, "a settle is on its way")
            held = run.unanswered(worker)
            wire.silence("extend")
            run.wait(lambda: run.server.client.exists(run.key(0, "suspects")), 15, "leases have run out")
            wire.heal()  # without heartbeats it takes nothing
            run.wait(lambda: run.are_taken_again(held), 15, "the same worker has a letter again")
            wire.release()
        run.finish()


@contextmanager
def cuttable(name: str) -> Iterator[Cluster]:
    need(root=True, programs=("ip",))
    with own_network(), CuttableCluster(name) as cluster:
        yield cluster


@row(
    "F6-apart",
    "a replica is out of its primary's reach when that is killed: WAIT must not have been believed",
    "cluster",
    place=cuttable,
)
def apart(run: Run) -> None:
    """A replica that merely hangs would not do: what its kernel has got of the stream, it reads when it goes on."""
    cluster: Any = run.cluster
    run.settings = {"durability": "replicated", "operation_timeout": 1.0}
    run.promise = Promise(resumes_s=FAILOVER_S)
    run.remap = dict(cluster.REMAP)
    run.begin(gap_s=0.03, mix=MIX)
    primary = run.primary(0)
    shards, [replica] = run.shards_of(primary), cluster.replicas_of(primary)
    with run.fault("a replica is cut off, SIGKILL of its primary", undoes=shards):
        cluster.cut_off(replica)
        run.sleep(1.2)
        killed_at = time.monotonic()
        primary.kill()
        cluster.join(replica)
        run.sleep(ON_THEIR_WAY_S)
    run.resumes(killed_at, shards)
    run.finish()


def separate(run: Run) -> None:
    """Cut a primary off from all other nodes; its clients reach both sides, but for one that is on its side alone."""
    cluster: Any = run.cluster
    primary = run.primary(0)
    shards, [heir] = run.shards_of(primary), cluster.replicas_of(primary)
    run.remap = dict(cluster.REMAP)
    run.begin(gap_s=0.05, mix=MIX)
    elsewhere = {cluster.address_of(node): "127.0.0.1:1" for node in cluster.nodes if node is not primary}
    run.url = f"redis://127.0.0.1:{primary.port}/0?cluster=true"
    run.remap = cluster.REMAP | elsewhere
    run.produce(1, lanes=2, mix=MIX)
    run.remap = dict(cluster.REMAP)
    with run.fault("a primary is cut off", undoes=shards):
        cut_at = time.monotonic()
        cluster.cut_off(primary)
        # Until it knows that it is alone, it goes on: what it takes then is undone when it is back.
        run.wait(heir.is_primary, 15, "the replica is the primary")
        promoted_at = time.monotonic()
        run.resumes(promoted_at, shards)
        run.sleep(0.5)
        cluster.join(primary)
        cluster.wait_until_ok()
    run.resumes(time.monotonic())
    run.finish()
    run.remarks.append(f"its replica took over after {promoted_at - cut_at:.1f} s")


@row("F12", "a primary is cut off with some clients; captures replicated", "cluster", place=cuttable)
def separated(run: Run) -> None:
    run.settings, run.promise = {"durability": "replicated"}, Promise(resumes_s=FAILOVER_S)
    separate(run)


@row("F12-memory", "the same at the default level: losses are counted", "cluster", place=cuttable)
def separated_default(run: Run) -> None:
    run.promise = Promise(lost="in a window", resumes_s=FAILOVER_S)
    separate(run)
    window_remark(run)


@row("F17", "each event is captured five times at once, also while a primary dies", "cluster")
def repeated(run: Run) -> None:
    run.settings = {"durability": "replicated"}
    run.begin(producers=2, lanes=2, gap_s=0.15, copies=5)
    fail_over(run)
    run.finish()
    compare_answers(run)


@row(
    "F17-once", "replies to captures are lost, nobody repeats, nothing is remembered: none is there twice", "standalone"
)
def once(run: Run) -> None:
    run.settings = {"dedupe_window": 0.0}
    run.begin(producers=0, workers=2, warm=0)
    with run.wire() as wire:
        run.url = wire.url
        run.produce(2, repeats=False, gap_s=0.03)
        with run.fault("replies lost"):
            for _ in range(10):
                wire.lose_replies("add", 3)
                run.sleep(0.2)
        run.sleep(0.3)
        run.finish()


@row("F25", "every connection of every client is closed, five times a second", "cluster")
def churn(run: Run) -> None:
    run.promise = Promise(resumes_s=1.0 + 0.5)
    run.begin(lanes=8)
    before = len(run.cluster.connections())
    with run.fault("CLIENT KILL storm"):
        for _ in range(15):
            for node in run.cluster.nodes:
                node.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            run.sleep(0.2)
    run.resumes(time.monotonic())
    run.sleep(1)
    after = len(run.cluster.connections())
    run.finish()
    run.remarks.append(f"{before} connections before, {after} after")
    if after > before * 1.5 + 10:
        run.failures.append("connections have piled up")


@row("F26", "captures and workers are cancelled at random moments, behind a jittering network", "standalone")
def cancelled(run: Run) -> None:
    with run.wire() as wire:
        wire.max_delay_s = 0.004
        run.begin(producers=0, workers=1, warm=0)
        run.url = wire.url
        run.work(2, cancels=1.0)
        run.produce(2, lanes=6, gap_s=0.01, cancels=0.15, mix=[[3, "ok", 2], [1, "ok", 30]])
        with run.fault("cancellations"):
            run.sleep(5)
        run.finish()
    cuts = sum(line.what == "info" and line.note == "cancelled" for line in run.history.lines)
    run.remarks.append(f"{cuts} captures were cancelled")
    if not cuts or run.figures.acknowledged < cuts / 10:
        run.failures.append("too few captures came to their end, or were cancelled: the row shows nothing")
