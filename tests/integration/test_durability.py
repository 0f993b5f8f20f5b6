"""durability: a capture is acknowledged when enough replicas or disks have it, else it is NotReplicated."""

import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from redis.exceptions import BusyLoadingError, ResponseError

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.servers import Server
from tests.support.waiting import eventually, in_time, patiently
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterQueue,
    NotReplicated,
    PartialCapture,
    StoreUnavailable,
)
from uno.event_bus.dead_letter.store.local_node import free_port


@pytest.fixture
def replica(server: Server) -> Iterator[Server]:
    """A replica of the test's server, in step with it."""
    with Server(server.name, "--repl-diskless-sync-delay", "0") as replica:
        server.client.config_set("repl-diskless-sync-delay", 0)
        server.client.config_set("bind", "127.0.0.1")
        port = _listen(server)  # a replica needs TCP
        replica.client.execute_command("REPLICAOF", "127.0.0.1", port)
        server.client.set("probe", 1)
        while not _has(replica, "probe"):
            time.sleep(0.005)
        yield replica
    server.client.config_set("port", 0)
    while server.client.info("replication")["connected_slaves"]:
        time.sleep(0.005)


def _listen(server: Server) -> int:
    """Have the server listen on a port that is free, also when another takes the first that was."""
    while True:
        port = free_port()
        with suppress(ResponseError):
            server.client.config_set("port", port)
            return port


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
        told = await patiently(partial(_not_replicated, queue))
        assert (told.got, told.wanted) == (0, wanted)
        # A repeat comes on another connection, perhaps: it must not pass for the replica's word either.
        await queue.aclose()
        again = await patiently(partial(_not_replicated, queue))
        assert again.letter_id == told.letter_id
        await patiently(partial(_none_is_replicated, queue, ["two", "three"]))
    finally:
        replica.send(signal.SIGCONT)
    if wanted == 1:
        await eventually(lambda: _is_confirmed(queue, told.letter_id))
    assert (await queues(shards=1).stats()).open == 3


async def test_a_repeat_after_a_growth_is_confirmed_in_its_home_of_before(
    queues: Queues, server: Server, replica: Server
) -> None:
    """The key is found there; that it is there says nothing of the replicas."""
    queue = queues(durability="replicated", operation_timeout=0.4, shards=1)
    names = [f"event-{n}" for n in range(8)]
    replica.send(signal.SIGSTOP)
    try:
        await patiently(partial(_none_is_replicated, queue, names))
        await patiently(partial(queue.reshard, 8))
        await patiently(partial(_none_is_replicated, queue, names))
    finally:
        replica.send(signal.SIGCONT)
    await eventually(lambda: _are_confirmed(queue, names))
    assert (await queues(shards=1).stats()).open == 8


async def _not_replicated(queue: DeadLetterQueue) -> NotReplicated:
    """Capture a letter that no replica confirms; its server may be slower than the queue waits for a reply."""
    with pytest.raises(NotReplicated) as told:
        await queue.add({"n": 1}, event_id="one", delay=60)
    return told.value


async def _none_is_replicated(queue: DeadLetterQueue, names: list[str]) -> None:
    with pytest.raises(PartialCapture) as told:
        await queue.add_many([{}] * len(names), event_ids=names, delay=60)
    assert len(told.value.errors) == len(names)
    for error in told.value.errors.values():
        if isinstance(error, StoreUnavailable):
            raise error
        assert type(error) is NotReplicated


async def _are_confirmed(queue: DeadLetterQueue, names: list[str]) -> bool:
    try:
        return len(set(await queue.add_many([{}] * 8, event_ids=names, delay=60))) == 8
    except PartialCapture:
        return False


async def _is_confirmed(queue: DeadLetterQueue, letter_id: str = "") -> bool:
    """Repeat a capture by its event id; answer whether it is confirmed now, as the letter that it was."""
    try:
        return (await queue.add({"n": 1}, event_id="one", delay=60)).startswith(letter_id)
    except (NotReplicated, StoreUnavailable):
        return False


async def test_without_replicas_nothing_is_confirmed(queues: Queues, server: Server) -> None:
    """A single server cannot replicate: each capture says so."""
    await eventually(lambda: not server.client.info("replication")["connected_slaves"])  # of an earlier test
    told = await patiently(partial(_not_replicated, queues(durability="replicated", operation_timeout=0.2)))
    assert "0 of 1 replicas" in str(told)


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
    """Valkey's WAITAOF with everysec (redis/redis#13793): ten are confirmed sooner than ten fsyncs may come."""
    if not server.name.startswith("valkey"):
        pytest.skip("of Valkey")
    with configured(server, "everysec"):
        with pytest.raises(ConfigError, match="up to a second before they are on disk"):
            await queues(durability="fsynced", durable_replicas=0).add({}, delay=60)
        await eventually(lambda: server.client.execute_command("WAITAOF", 1, 0, 100)[0])

        async def confirm_ten() -> None:
            for n in range(10):
                server.client.set("probe", n)
                assert server.client.execute_command("WAITAOF", 1, 0, 8000)[0] == 1

        # Else it waits for the disk now: `CONFIRM_EARLY` should let it be.
        await in_time(confirm_ten, 5)


async def test_a_user_who_may_not_ask_is_warned_of_the_servers_default(
    queues: Queues, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Managed servers forbid CONFIG: nobody can know, and somebody has to look."""
    if not server.name.startswith("valkey"):
        pytest.skip("of Valkey")
    server.client.execute_command("ACL", "SETUSER", "shop", "on", ">word", "~*", "&*", "+@all", "-config")
    try:
        with configured(server, "always"):
            queue = queues(server.url_of("shop", "word"), durability="fsynced", durable_replicas=0)
            await eventually(lambda: _is_confirmed(queue))
            await queue.aclose()
    finally:
        server.client.execute_command("ACL", "DELUSER", "shop")
    [warning] = {record.getMessage() for record in caplog.records if "appendfsync" in record.getMessage()}
    assert "does not tell its appendfsync (CONFIG GET is refused); with appendfsync everysec, valkey" in warning


async def test_an_embedded_server_is_started_so_that_its_disk_is_waited_for(tmp_path: Path) -> None:
    """Else nobody who asks for it could have it there."""
    config = DeadLetterConfig(durability="fsynced", durable_replicas=0)
    async with DeadLetterQueue(f"embedded://{tmp_path}/e", config) as queue:
        await queue.add({"n": 1}, delay=60)


async def test_a_disk_that_is_left_to_the_system_is_refused(queues: Queues, place: Place) -> None:
    """Nobody knows when it has what is written to it."""
    if place.version < (7, 2):
        pytest.skip("WAITAOF came with Redis 7.2")
    for protocol in (2, 3):
        queue = queues(place.users_client(protocol=protocol), durability="fsynced", durable_replicas=0)
        with (
            configured(place, "no"),
            pytest.raises(ConfigError, match="has appendfsync no; allowed is always"),
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
