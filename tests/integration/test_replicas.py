"""Reading from replicas: what only looks may ask them, what decides never does."""

import signal
from functools import partial

import pytest

from tests.integration.conftest import Queues
from tests.support.clusters import Cluster
from tests.support.servers import Server
from tests.support.waiting import eventually, patiently
from uno.event_bus.dead_letter import Where
from uno.event_bus.dead_letter.store.local_node import LocalNode


def scripts_run(nodes: list[LocalNode]) -> int:
    """How often these nodes have run a script."""
    stats = [node.client.info("commandstats") for node in nodes]
    return sum(stat.get(f"cmdstat_{verb}", {}).get("calls", 0) for stat in stats for verb in ("evalsha", "eval"))


def replicas_of(cluster: Cluster) -> list[LocalNode]:
    return [replica for primary in cluster.primaries() for replica in cluster.replicas_of(primary)]


def every_node_names_replicas(cluster: Cluster) -> bool:
    """Nodes leave out of CLUSTER SLOTS a replica that they have not heard of for long enough."""
    maps = [node.client.execute_command("CLUSTER", "SLOTS") for node in cluster.nodes]
    return all(len(row) > 3 for rows in maps for row in rows)


async def test_only_verbs_that_look_ask_replicas(cluster: Cluster, queues: Queues) -> None:
    """`get`, `letters` and `stats` leave the primaries alone; what changes letters, and `verify`, the replicas."""
    await eventually(partial(every_node_names_replicas, cluster))
    queue = queues(shards=4, read_from="replica")
    ids = await queue.add_many([{"n": n} for n in range(40)], delay=60)
    replicas, primaries = replicas_of(cluster), cluster.primaries()

    async def replicated() -> bool:
        return (await queue.stats()).open == 40

    await eventually(replicated)
    on_primaries, on_replicas = scripts_run(primaries), scripts_run(replicas)
    assert {letter.id async for letter in queue.letters()} == set(ids)
    assert (await queue.get(ids[0])).id == ids[0]
    assert (await queue.stats()).open == 40
    assert scripts_run(primaries) == on_primaries
    looked = scripts_run(replicas)
    assert looked >= on_replicas + 4 + 1 + 4  # a call a shard, one for the letter; each node is taught a script once

    await queue.discard(ids[0], "not wanted")
    assert (await queue.retry_many(Where())).done == 39
    report = await queue.verify()
    assert report.clean and report.letters == 39
    assert (await queue.process()).released == 39  # nobody handles them
    assert scripts_run(replicas) == looked


@pytest.mark.timed(0.2)
async def test_a_primary_answers_for_replicas_that_do_not(cluster: Cluster, queues: Queues) -> None:
    """Replicas that hang, or are gone, cost one timeout a shard; then the primaries are asked."""
    queue = queues(shards=4, read_from="replica", operation_timeout=0.5)
    await queues(shards=4).add_many([{"n": n} for n in range(20)], delay=60)
    await patiently(queue.open)
    first, *others = replicas_of(cluster)
    first.send(signal.SIGSTOP)
    for replica in others:
        replica.kill()
    assert (await queue.stats()).open == 20
    assert sum([1 async for _ in queue.letters()]) == 20


async def test_one_server_has_no_replica_to_ask(server: Server, queues: Queues) -> None:
    """The setting does no harm there."""
    queue = queues(read_from="replica")
    id = await queue.add({})
    assert (await queue.get(id)).id == id
