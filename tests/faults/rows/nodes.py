"""Nodes that die, hang and hand over, and slots that move: F6 to F10, and the primaries one after another."""

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial

from tests.faults.rows.registry import Skip, row
from tests.support.clusters import Cluster
from tests.support.harness.run import FAILOVER_S, Promise, Run
from uno.event_bus.dead_letter.store.local_node import LocalNode

__all__ = ["fail_over", "move_keys", "move_slots"]

REPLICATED = {"durability": "replicated"}
DURABLE = Promise(lost=0, resumes_s=FAILOVER_S)
DEFAULT = Promise(lost="in a window", resumes_s=FAILOVER_S)
SETTLE_S = 0.3

MIX = [[1, "ok", 5], [1, "later", 1500]]
"""Half of the letters wait for a while: what is run at once is over before anybody could lose it."""

ON_THEIR_WAY_S = 0.2
"""For replies of a node that has died to be read and written down: what they acknowledge, its death may undo."""


def fail_over(run: Run, shard: int = 0) -> LocalNode:
    """Kill the primary of a shard, wait until work has resumed, and bring the node back; return it.

    Not before its replica has taken over: it would serve what it had on disk again, and no durability helps then.
    """
    primary = run.primary(shard)
    shards, [heir] = run.shards_of(primary), run.cluster.replicas_of(primary)
    with run.fault("SIGKILL of a primary", undoes=shards):
        killed_at = time.monotonic()
        primary.kill()
        run.sleep(ON_THEIR_WAY_S)
    run.wait(heir.is_primary, 15, "the replica is the primary")
    run.resumes(killed_at, shards)
    primary.start()
    run.cluster.wait_until_ok()
    return primary


def window_remark(run: Run) -> None:
    """Say when what was lost had been acknowledged, by the examples."""
    acknowledged = {line.event: line.at for line in run.history.lines if line.what == "ok"}
    begins = [line.at for line in run.history.lines if line.what == "fault" and line.note == "begin"]
    lost = [text.split()[1] for text in run.figures.examples if text.startswith("lost ")]
    after_s = [min((acknowledged[event] - begin for begin in begins), key=abs) for event in lost]
    if after_s:
        run.remarks.append(
            f"lost what was acknowledged {min(after_s):+.2f} to {max(after_s):+.2f} s after a fault began"
        )


def compare_answers(run: Run) -> None:
    """Say how many events were answered with several ids, which is a failure of the row."""
    answers: dict[str, set[str]] = {}
    for line in run.history.lines:
        if line.what == "ok":
            answers.setdefault(line.event, set()).add(line.letter)
    different = [event for event, letters in answers.items() if len(letters) > 1]
    run.remarks.append(f"{len(answers)} events, {len(different)} answered with several ids")
    if different:
        run.failures.append(f"several ids for {different[:5]}")


@row("F6", "a primary is killed by SIGKILL; captures replicated", "cluster")
def killed_primary(run: Run) -> None:
    run.settings, run.promise = REPLICATED, DURABLE
    run.begin(mix=MIX)
    for _ in range(2):
        fail_over(run, run.chance.choice(run.shards))
        run.sleep(SETTLE_S)
    run.finish()


@row("F6-memory", "the same at the default level: losses are counted", "cluster")
def killed_primary_default(run: Run) -> None:
    run.promise = DEFAULT
    run.begin(gap_s=0.04, mix=MIX)
    for _ in range(2):
        fail_over(run, run.chance.choice(run.shards))
        run.sleep(SETTLE_S)
    run.finish()
    window_remark(run)


def zombie(run: Run, shard: int = 0) -> None:
    """Stop a primary until its replica has taken over, and let it go on."""
    primary = run.primary(shard)
    shards = run.shards_of(primary)
    with run.fault("SIGSTOP of a primary", undoes=shards):
        stopped_at = time.monotonic()
        primary.send(signal.SIGSTOP)
        run.resumes(stopped_at, shards)
        run.sleep(0.5)
        primary.send(signal.SIGCONT)
        run.cluster.wait_until_ok()
        run.sleep(0.2)


HANGS = FAILOVER_S + 1
"""Later than after a death: a call to a node that hangs is given up after 2 s, and is not refused at once."""


@row("F7", "a primary hangs, is replaced, and goes on; captures replicated", "cluster")
def zombie_primary(run: Run) -> None:
    run.settings, run.promise = REPLICATED, Promise(resumes_s=HANGS)
    run.begin(gap_s=0.05, mix=MIX)
    for _ in range(2):
        zombie(run, run.chance.choice(run.shards))
        run.sleep(SETTLE_S)
    run.finish()


@row("F7-memory", "the same at the default level: losses are counted", "cluster")
def zombie_primary_default(run: Run) -> None:
    run.promise = Promise(lost="in a window", resumes_s=HANGS)
    run.begin(gap_s=0.05, mix=MIX)
    for _ in range(2):
        zombie(run, run.chance.choice(run.shards))
        run.sleep(SETTLE_S)
    run.finish()
    window_remark(run)


@row("F8", "each primary hands over to its replica, twice", "cluster")
def handed_over(run: Run) -> None:
    run.promise = Promise(errors=0, duplicated=0, resumes_s=1.0 + SETTLE_S)
    run.begin()
    for _ in range(2):
        for primary in run.cluster.primaries():
            shards = run.shards_of(primary)
            if not shards:
                continue
            [replica] = run.cluster.replicas_of(primary)
            with run.fault("CLUSTER FAILOVER"):
                asked_at = time.monotonic()
                replica.client.execute_command("CLUSTER", "FAILOVER")
                run.wait(replica.is_primary, 10, "the replica is the primary")
                run.resumes(max(asked_at, time.monotonic() - 0.05), shards)
            run.cluster.wait_until_ok()
    run.finish()


def move_keys(
    slot: int,
    source: LocalNode,
    target: LocalNode,
    nodes: Sequence[LocalNode],
    pause_s: float,
    moved: Callable[[], object] = bool,
) -> None:
    """Move a slot key by key, with pauses: for a while half of its keys are here and half there.

    `moved` is called when all keys are there, and the slot still belongs to the source.
    """
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
        time.sleep(pause_s)
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    time.sleep(pause_s)
    moved()
    for node in (target, source, *(node for node in nodes if node not in (source, target))):
        node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target.id)


def move_slots(run: Run, *, to: LocalNode | None = None, pause_s: float = 0.03) -> None:
    """Move every slot of the queue to another node, key by key, under load.

    A worker that starts when all of the queue's own keys have moved is sent after them by ASK.
    """
    for slot in run.slots():
        moved = partial(run.work, 1) if slot == run.slots()[0] else bool
        primaries = run.cluster.primaries()
        source = run.cluster.primary_of(slot)
        target = to or primaries[(primaries.index(source) + 1) % len(primaries)]
        with run.fault("slot migration"):
            move_keys(slot, source, target, primaries, pause_s, moved)
        run.resumes(time.monotonic())


@row("F9", "every slot of the queue moves key by key, to a node without slots and on", "cluster", place=Cluster)
def moved_keys(run: Run) -> None:
    run.settings = {"operation_timeout": 10.0}
    run.promise = Promise(errors=0, duplicated=0)
    run.begin(lanes=8)
    move_slots(run, to=run.cluster.add_empty_primary())
    move_slots(run)
    run.finish()


@row("F10", "every slot of the queue moves at once, to a node without slots", "cluster", place=Cluster)
def moved_at_once(run: Run) -> None:
    if run.cluster.version < (9, 0):
        raise Skip("atomic slot migration came with Valkey 9")
    run.promise = Promise(errors=0, duplicated=0, resumes_s=1.0)
    run.begin()
    new = run.cluster.add_empty_primary()
    for slot in run.slots():
        source = run.cluster.primary_of(slot)
        with run.fault("atomic slot migration"):
            source.client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", new.id)
            run.wait(partial(_serves, new, slot), 10, "the slot has moved")
        run.resumes(time.monotonic())
    run.finish()


def _serves(node: LocalNode, slot: int) -> bool:
    return any(
        first <= slot <= last and int(primary[1]) == node.port
        for first, last, primary, *_ in node.client.execute_command("CLUSTER", "SLOTS")
    )


def one_after_another(run: Run, kills: int) -> None:
    """Kill primaries, each of another shard than the last, each back before the next."""
    run.begin(producers=4, workers=4, lanes=2, mix=MIX)
    unasked = 0
    primaries = [run.primary(shard) for shard in run.shards]
    for kill in range(kills):
        shard = run.shards[kill % len(run.shards)]
        unasked += sum(run.primary(other) is not known for other, known in enumerate(primaries))
        fail_over(run, shard)
        primaries = [run.primary(other) for other in run.shards]
        run.sleep(0, SETTLE_S)
    run.finish()
    run.remarks.append(
        f"{kills} kills, median {sorted(run.resumed_s)[kills // 2]:.2f} s; {unasked} shards have failed over unasked"
    )


@row("20-primaries", "20 primaries killed one after another; 4 producers, 4 workers; captures replicated", "cluster")
def twenty(run: Run) -> None:
    run.settings, run.promise = REPLICATED, DURABLE
    one_after_another(run, 20)


@row("8-primaries-memory", "8 of them at the default level: losses are counted", "cluster")
def eight(run: Run) -> None:
    run.promise = DEFAULT
    one_after_another(run, 8)
    window_remark(run)
