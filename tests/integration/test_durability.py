"""durability: a capture is acknowledged when enough replicas or disks have it, else it is NotReplicated."""

import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

import pytest
from redis.exceptions import BusyLoadingError

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.servers import Server
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import ConfigError, DeadLetterQueue, NotReplicated, PartialCapture
from uno.event_bus.dead_letter.store.local_node import free_port


@pytest.fixture
def replica(server: Server) -> Iterator[Server]:
    """A replica of the test's server, in step with it."""
    with Server(server.name, "--repl-diskless-sync-delay", "0") as replica:
        server.client.config_set("repl-diskless-sync-delay", 0)
        port = free_port()  # a replica needs TCP
        server.client.config_set("bind", "127.0.0.1")
        server.client.config_set("port", port)
        replica.client.execute_command("REPLICAOF", "127.0.0.1", port)
        server.client.set("probe", 1)
        while not _has(replica, "probe"):
            time.sleep(0.005)
        yield replica
    server.client.config_set("port", 0)
    while server.client.info("replication")["connected_slaves"]:
        time.sleep(0.005)


def _has(replica: Server, key: str) -> bool:
    with suppress(BusyLoadingError):  # as long as it takes over the data
        return replica.client.get(key) is not None
    return False


async def test_a_replicated_capture_is_on_the_replica_when_it_is_acknowledged(
    queues: Queues, server: Server, replica: Server
) -> None:
    """Alone and in batches."""
    queue = queues(durability="replicated", shards=1)
    ids = [await queue.add({"n": 1}, delay=60), *await queue.add_many([{"n": n} for n in range(250)], delay=60)]
    key = next(key for key in replica.client.keys("*:letters"))
    assert replica.client.xlen(key) == len(ids) == 251


@pytest.mark.parametrize("wanted", [1, 2])
async def test_what_is_not_confirmed_is_told_and_may_be_repeated(
    queues: Queues, server: Server, replica: Server, wanted: int
) -> None:
    """Outcome unknown: it is there all the same, and a repeat by its event id is the same letter."""
    queue = queues(durability="replicated", durable_replicas=wanted, operation_timeout=0.4, shards=1)
    replica.send(signal.SIGSTOP)
    try:
        with pytest.raises(NotReplicated) as told:
            await queue.add({"n": 1}, event_id="one", delay=60)
        assert (told.value.got, told.value.wanted) == (0, wanted)
        # A repeat comes on another connection, perhaps: it must not pass for the replica's word either.
        await queue.aclose()
        with pytest.raises(NotReplicated) as again:
            await queue.add({"n": 1}, event_id="one", delay=60)
        assert again.value.letter_id == told.value.letter_id
        with pytest.raises(PartialCapture) as many:
            await queue.add_many([1, 2], delay=60)
        assert {type(error) for error in many.value.errors.values()} == {NotReplicated}
    finally:
        replica.send(signal.SIGCONT)
    if wanted == 1:
        await eventually(lambda: _is_confirmed(queue, told.value.letter_id), within_s=10)
    assert (await queue.stats()).open == 3


async def test_a_repeat_after_a_growth_is_confirmed_in_its_home_of_before(
    queues: Queues, server: Server, replica: Server
) -> None:
    """The key is found there; that it is there says nothing of the replicas."""
    queue = queues(durability="replicated", operation_timeout=0.4, shards=1)
    names = [f"event-{n}" for n in range(8)]
    replica.send(signal.SIGSTOP)
    try:
        with pytest.raises(PartialCapture):
            await queue.add_many([{}] * 8, event_ids=names, delay=60)
        await queue.reshard(8)
        with pytest.raises(PartialCapture) as again:
            await queue.add_many([{}] * 8, event_ids=names, delay=60)
        assert {type(error) for error in again.value.errors.values()} == {NotReplicated}
        assert len(again.value.errors) == 8
    finally:
        replica.send(signal.SIGCONT)
    await eventually(lambda: _are_confirmed(queue, names), within_s=10)
    assert (await queue.stats()).open == 8


async def _are_confirmed(queue: DeadLetterQueue, names: list[str]) -> bool:
    try:
        return len(set(await queue.add_many([{}] * 8, event_ids=names, delay=60))) == 8
    except PartialCapture:
        return False


async def _is_confirmed(queue: DeadLetterQueue, letter_id: str = "") -> bool:
    """Repeat a capture by its event id; answer whether it is confirmed now, as the letter that it was."""
    try:
        return (await queue.add({"n": 1}, event_id="one", delay=60)).startswith(letter_id)
    except NotReplicated:
        return False


async def test_without_replicas_nothing_is_confirmed(queues: Queues, server: Server) -> None:
    """A single server cannot replicate: each capture says so."""
    await eventually(lambda: not server.client.info("replication")["connected_slaves"])  # of an earlier test
    with pytest.raises(NotReplicated, match="0 of 1 replicas"):
        await queues(durability="replicated", operation_timeout=0.2).add({}, delay=60)


async def test_an_fsynced_capture_needs_a_server_with_an_aof(queues: Queues, place: Place) -> None:
    """Without one, or before Redis 7.2, the queue does not open, and says what is allowed."""
    queue = queues(durability="fsynced", durable_replicas=0)
    with pytest.raises(ConfigError, match="durability=fsynced needs"):
        await queue.add({}, delay=60)
    if place.version >= (7, 2):
        with configured(place, "always"):
            # Until its first rewrite is done, the server fsyncs nothing.
            await eventually(lambda: _is_confirmed(queue))


async def test_a_disk_that_may_confirm_in_time_by_luck_alone_is_refused(queues: Queues, place: Place) -> None:
    """The next second's fsync comes too late for a short wait, and again for the repeat that follows."""
    if place.version < (8, 0) or place.name.startswith("valkey"):
        pytest.skip("of servers whose WAITAOF waits for the disk with everysec")
    with configured(place, "everysec"):
        for replicas, least in (0, 3), (1, 5):
            short = queues(durability="fsynced", durable_replicas=replicas, operation_timeout=least - 0.1)
            with pytest.raises(ConfigError, match=f"allowed are {least} and more, or appendfsync always"):
                await short.add({}, delay=60)
        longer = queues(durability="fsynced", durable_replicas=0, operation_timeout=3)
        await eventually(lambda: _is_confirmed(longer))


async def test_a_server_that_confirms_what_its_disk_has_not_is_refused(queues: Queues, server: Server) -> None:
    """Valkey's WAITAOF with everysec (redis/redis#13793): twenty are confirmed sooner than twenty fsyncs may come."""
    if not server.name.startswith("valkey"):
        pytest.skip("of Valkey")
    with configured(server, "everysec"):
        with pytest.raises(ConfigError, match="up to a second before they are on disk"):
            await queues(durability="fsynced", durable_replicas=0).add({}, delay=60)
        await eventually(lambda: server.client.execute_command("WAITAOF", 1, 0, 100)[0])
        began = time.monotonic()
        for n in range(20):
            server.client.set("probe", n)
            assert server.client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
        assert time.monotonic() - began < 10, "it waits for the disk now: `CONFIRM_EARLY` should let it be"


async def test_a_disk_that_is_left_to_the_system_is_refused(queues: Queues, place: Place) -> None:
    """Nobody knows when it has what is written to it."""
    if place.version < (7, 2):
        pytest.skip("WAITAOF came with Redis 7.2")
    for protocol in (2, 3):
        queue = queues(place.users_client(protocol=protocol), durability="fsynced", durable_replicas=0)
        with (
            configured(place, "no"),
            pytest.raises(ConfigError, match="has appendfsync no; allowed are always and"),
        ):
            await queue.add({}, delay=60)


@contextmanager
def configured(place: Place, appendfsync: str) -> Generator[None]:
    """Servers with an AOF that is fsynced so."""
    was = place.clients()[0].config_get("appendfsync")["appendfsync"]
    try:
        for client in place.clients():
            client.config_set("appendfsync", appendfsync)
            client.config_set("appendonly", "yes")
        yield
    finally:
        for client in place.clients():
            client.config_set("appendonly", "no")
            client.config_set("appendfsync", was)
