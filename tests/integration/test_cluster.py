"""A cluster: one queue over many slots, which goes on when nodes die, come back, change places, and slots move."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
from redis.asyncio.cluster import RedisCluster

from tests.integration.conftest import Queues, queues_on
from tests.support.clusters import Cluster
from tests.support.load import finish, under_load
from tests.support.spools import all_sent, letters_of, numbers
from tests.support.waiting import eventually, in_time, running
from uno.event_bus.dead_letter import DeadLetterQueue, LetterNotFound, NotReplicated, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.layout import shard_tag, slot_of
from uno.event_bus.dead_letter.store.local_node import LocalNode
from uno.event_bus.dead_letter.store.topology import ASK_TIMEOUT_S

NODE_TIMEOUT_S = 1.0
"""After which a node that does not answer counts as away, in test clusters."""

PATIENT: dict[str, Any] = {"operation_timeout": 10.0, "lease_seconds": 10.0}
"""For work that no error and no second run may disturb, though the machine stands still for a while."""


def primary_of_shard(cluster: Cluster, shard: int) -> LocalNode:
    return cluster.primary_of(slot_of(shard_tag("default", shard)))


def shard_of(letter_id: str) -> int:
    return int(letter_id.partition("-")[0])


async def test_a_node_that_is_slow_to_tell_the_map_is_asked_again(cluster: Cluster, queues: Queues) -> None:
    """Its machine stood still for longer than one question may take; a call may take longer."""
    [replica] = cluster.replicas_of(cluster.primaries()[0])
    queue = queues(f"redis://127.0.0.1:{replica.port}/0?cluster=true", operation_timeout=20.0)
    replica.send(signal.SIGSTOP)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(queue.open)
            await anyio.sleep(1.3 * ASK_TIMEOUT_S)
            replica.send(signal.SIGCONT)
    finally:
        replica.send(signal.SIGCONT)
    assert (await queue.stats()).open == 0


@pytest.mark.parametrize("named", ["url", "one node", "several nodes", "client"])
async def test_a_queue_is_spread_over_the_nodes_however_they_are_named(
    cluster: Cluster, queues: Queues, named: str
) -> None:
    """By a cluster's URL, a plain one of any of its nodes, several nodes of which one is away, or a user's client."""
    source: Any = {
        "url": cluster.url,
        "one node": f"redis://127.0.0.1:{cluster.nodes[-1].port}/0",
        "several nodes": f"redis://127.0.0.1:1,127.0.0.1:{cluster.nodes[0].port}/0?cluster=true",
        "client": RedisCluster.from_url(cluster.url.partition("?")[0], decode_responses=True),
    }[named]
    queue = queues(source, shards=16)
    done: list[Any] = []
    queue.add_handler(done.append)
    ids = await queue.add_many([{"n": n} for n in range(300)], delay=0)
    assert {shard_of(id) for id in ids} == set(range(16))
    for node in cluster.primaries():
        assert 5 <= len(node.client.keys("*:letters")) <= 6
    await queue.process()
    assert len(done) == 300
    if isinstance(source, RedisCluster):
        await source.aclose()


async def test_a_killed_primary_costs_no_replicated_capture(cluster: Cluster, queues: Queues) -> None:
    """Its replica takes over, work goes on by itself within two node timeouts and 2 s, all acknowledged is run."""
    async with under_load(queues, durability="replicated", shards=4) as load:

        async def fail_over() -> float:
            await anyio.to_thread.run_sync(cluster.wait_until_ok)
            killed, began = primary_of_shard(cluster, 0), monotonic()
            killed.kill()
            await eventually(partial(answers, load.producer, 0))
            took = monotonic() - began
            killed.start()  # a replica now: without one nothing more could be replicated
            return took

        await in_time(fail_over, 2 * NODE_TIMEOUT_S + 2)
        await finish(load)


async def test_captures_of_a_killed_primary_wait_in_the_spool_and_come_once(
    cluster: Cluster, queues: Queues, tmp_path: Path
) -> None:
    """While its replica takes over no capture fails, and no letter is there twice; each key stays in its order."""
    queue = queues(shards=4, durability="replicated", spool_dir=str(tmp_path), operation_timeout=0.5)
    await queue.open()
    killed, ids, n = primary_of_shard(cluster, 0), list[str](), 0

    async def capture() -> None:
        nonlocal n
        at, n = n, n + 1
        while len(ids) == at:
            with suppress(NotReplicated):  # its caller repeats it
                ids.append(await queue.add({"n": at}, ordering_key=f"k{at % 8}", event_id=f"e{at}", delay=60))

    for _ in range(40):
        await capture()
    killed.kill()
    while not ids[-1].startswith("spooled:"):
        await capture()
    await eventually(partial(answers, queue, 0))
    killed.start()  # a replica now: without one nothing more could be replicated

    async def straight_again() -> bool:
        for _ in range(8):
            await capture()
        return not any(id.startswith("spooled:") for id in ids[-8:])

    await eventually(straight_again)
    await all_sent(queue)
    found = await letters_of(queue)
    assert await numbers(queue) == list(range(n))
    for key in {letter.ordering_key for letter in found}:
        ordered = [json.loads(letter.payload)["n"] for letter in found if letter.ordering_key == key]
        assert ordered == sorted(ordered)


async def answers(queue: DeadLetterQueue, shard: int) -> bool:
    """Whether the shard tells what letters it has."""
    try:
        await queue.get(f"{shard}-1-1")
    except LetterNotFound:
        return True
    except StoreUnavailable:
        return False
    raise AssertionError("there is no such letter")


async def test_planned_failovers_are_invisible(cluster: Cluster, queues: Queues) -> None:
    """Each primary hands over to its replica in turn: no error reaches the producer, no letter is lost or run twice."""
    async with under_load(queues, shards=4, **PATIENT) as load:
        for primary in cluster.primaries():
            [replica] = cluster.replicas_of(primary)
            replica.client.execute_command("CLUSTER", "FAILOVER")
            await eventually(replica.is_primary)
            await anyio.sleep(0.3)
        await finish(load)
        assert load.errors == []
        assert max(load.ran.values()) == 1


async def test_a_capture_goes_to_another_node_when_its_home_is_away(cluster: Cluster, queues: Queues) -> None:
    """One whose id the engine makes, at once; one that a caller may repeat waits for its home, and is there once."""
    queue = queues(shards=4, operation_timeout=20.0)
    await queue.open()
    away = primary_of_shard(cluster, 0)
    [replica] = cluster.replicas_of(away)
    theirs = {shard for shard in range(4) if primary_of_shard(cluster, shard) is away}
    named = next(str(n) for n in range(100) if home(queue, str(n)) in theirs)
    with no_failover(replica):
        away.kill()
        began = monotonic()
        ids = await queue.add_many([{"n": n} for n in range(200)], delay=60)
        assert monotonic() - began < 10
        assert not theirs & {shard_of(id) for id in ids}
    id = await queue.add({}, event_id=named, delay=60)
    assert shard_of(id) in theirs
    assert await queue.add({}, event_id=named, delay=60) == id
    assert (await queue.stats()).open == 201


@contextmanager
def no_failover(replica: LocalNode) -> Iterator[None]:
    """The replica takes over from nobody, however long the block lasts."""
    replica.client.config_set("cluster-replica-no-failover", "yes")
    try:
        yield
    finally:
        replica.client.config_set("cluster-replica-no-failover", "no")


def home(queue: DeadLetterQueue, event_id: str) -> int:
    [store] = queue._storage._receivers.values()
    return store.home_of(NewLetter(event_id=event_id, type="", payload=b""))


async def test_a_shard_whose_node_is_away_pauses_alone(cluster: Cluster, queues: Queues) -> None:
    """A node hangs, nobody takes over (failovers are off): letters of the others run as before."""
    worker, producer = queues(shards=4, operation_timeout=1.0, lease_seconds=5), queues(shards=4)
    done: list[int] = []
    worker.add_handler(done.append)
    away = primary_of_shard(cluster, 0)
    [replica] = cluster.replicas_of(away)
    await producer.open()
    others = [str(n) for n in range(100) if primary_of_shard(cluster, home(producer, str(n))) is not away]
    async with running(worker):
        with no_failover(replica):
            away.send(signal.SIGSTOP)
            try:
                await anyio.sleep(1.2)  # all that was on its way to it has failed
                await producer.add_many(range(len(others)), event_ids=others, delay=0)
                # Mostly within milliseconds. A machine that stands still for a second loses a reply of `take`: its
                # letters are found by the second heartbeat after that, each a third of a lease later.
                await eventually(lambda: set(done) == set(range(len(others))))
                assert len(done) == len(others)
            finally:
                away.send(signal.SIGCONT)
        await eventually(partial(answers, producer, 0))
        await producer.add(-1, delay=0)
        await eventually(lambda: -1 in done)


# -- slots that move --------------------------------------------------------------------------------------


def slots_of(queue: str, shards: int) -> list[int]:
    """The slots of a queue: of its shards, and of its own keys."""
    return [slot_of(queue), *(slot_of(shard_tag(queue, shard)) for shard in range(shards))]


async def move_keys(slot: int, source: LocalNode, target: LocalNode, nodes: Sequence[LocalNode]) -> None:
    """Move a slot key by key, with pauses: for a while half of its keys are here and half there."""
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
        await anyio.sleep(0.03)
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    await anyio.sleep(0.05)
    for node in (target, source, *(node for node in nodes if node not in (source, target))):
        node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target.id)


async def test_slots_that_move_key_by_key_cost_nothing(cluster: Cluster, queues: Queues) -> None:
    """ASK and TRYAGAIN are a pause: under load every slot of the queue moves to the next node, and no error is seen."""
    async with under_load(queues, shards=4, **PATIENT) as load:
        for slot in slots_of("default", 4):
            primaries = cluster.primaries()
            source = cluster.primary_of(slot)
            target = primaries[(primaries.index(source) + 1) % len(primaries)]
            await move_keys(slot, source, target, primaries)
        await finish(load)
        assert load.errors == []
        assert max(load.ran.values()) == 1


async def test_slots_that_move_at_once_to_a_new_node_cost_nothing(cluster: Cluster, queues: Queues) -> None:
    """Valkey's atomic migration, to a node that had no slots and that nobody knew."""
    if cluster.version < (9, 0):
        pytest.skip("atomic slot migration came with Valkey 9")
    with Cluster(cluster.name) as grown:
        async with queues_on(grown) as made, under_load(made, shards=4, **PATIENT) as load:
            new = await anyio.to_thread.run_sync(grown.add_empty_primary)  # not while the loop stands still
            for slot in slots_of("default", 4):
                source = grown.primary_of(slot)
                source.client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", new.id)
                await eventually(partial(_serves, new, slot))
            await finish(load)
            assert load.errors == []
            assert max(load.ran.values()) == 1
            assert len(new.client.keys("*:letters")) == 4


def _serves(node: LocalNode, slot: int) -> bool:
    return any(
        first <= slot <= last and int(primary[1]) == node.port
        for first, last, primary, *_ in node.client.execute_command("CLUSTER", "SLOTS")
    )
