"""Connections: how many, of whose making, and that none is lost or crossed, whatever is cancelled or cut."""

import logging
import random
import signal
from collections import Counter
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.integration.conftest import Queues
from tests.support.loops import BOTH_LOOPS
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually, patiently, running
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterError, DeadLetterQueue, StoreUnavailable
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.meaning import NotConnected
from uno.event_bus.dead_letter.store.node import SIZES, Node

COMMANDS, HEARTBEATS = 16, 4


@pytest.mark.parametrize("shards", [1, 4, 16])
async def test_a_workers_connections_are_bounded(queues: Queues, shards: int) -> None:
    """One blocking read a shard, and the bounded pools of commands and heartbeats, also under load."""
    queue = queues(shards=shards, concurrency=50)
    queue.add_handler(lambda event: None)
    most = 0
    async with running(queue):
        for _ in range(8):
            async with anyio.create_task_group() as group:
                for _ in range(30):
                    group.start_soon(lambda: queue.add_many([{}] * 10, delay=0))
            most = max(most, len(queues.connections()))
        await eventually(lambda: _is_empty(queue))
    assert most <= shards + (COMMANDS + HEARTBEATS) * len(queues.place.clients())


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


async def test_callers_wait_their_turn_for_a_connection(queues: Queues) -> None:
    """A hundred callers in a loop on sixteen connections: nobody starves, and none gives up.

    Each goes to the shard that its letter's hash names, so some have more luck than others.
    """
    queue = queues(operation_timeout=10.0)
    await queue.open()
    calls = [0] * 100

    async def keep_calling(caller: int) -> None:
        while sum(calls) < 3000:
            await queue.add({}, delay=60)
            calls[caller] += 1

    async with anyio.create_task_group() as group:
        for caller in range(100):
            group.start_soon(keep_calling, caller)
    assert min(calls) >= max(calls) / 4


@pytest.mark.timed(0.2)
async def test_an_idle_worker_asks_little_of_its_server(queues: Queues) -> None:
    """No error, no new connection, and a few commands a second and shard."""
    queue = queues(shards=4)
    queue.add_handler(lambda event: None)
    async with running(queue):
        await eventually(lambda: sum("xread" in each for each in queues.connections()) == 4)
        await anyio.sleep(0.3)
        connections, errors, commands_a_second = await two_seconds_of(queues.place)
    assert (connections, errors) == (0, {})
    assert commands_a_second / 4 < 60  # commands inside scripts are counted, too


async def two_seconds_of(place: Place) -> tuple[int, Counter[str], float]:
    """How many connections are made meanwhile; errors by their names; commands a second."""
    before, errors_before, began = stats_of(place, "stats"), stats_of(place, "errorstats"), monotonic()
    await anyio.sleep(2)
    counted, errors, took = stats_of(place, "stats"), stats_of(place, "errorstats"), monotonic() - began
    counted.subtract(before)
    return counted["total_connections_received"], errors - errors_before, counted["total_commands_processed"] / took


def stats_of(place: Place, section: str) -> Counter[str]:
    """What INFO counts in that section, of all nodes together."""
    counts: Counter[str] = Counter()
    for client in place.clients():
        for name, count in client.info(section).items():
            counts[name] += count["count"] if isinstance(count, dict) else int(count)
    return counts


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "decoded"])
async def test_whatever_the_users_client_says_the_engine_has_its_own_connections(
    queues: Queues, place: Place, protocol: int, decode: bool
) -> None:
    """RESP2 or 3, decoded or not, with retries, timeouts and a health check of the user's."""
    client = place.users_client(
        protocol=protocol,
        decode_responses=decode,
        socket_timeout=0.001,
        health_check_interval=1,
        retry=Retry(NoBackoff(), 3),
        client_name="the user's",
        max_connections=1,
    )
    queue = queues(client)
    done: list[Any] = []
    queue.add_handler(done.append)
    await queue.add({"n": 1}, delay=0)
    await queue.process()
    assert done == [{"n": 1}]
    await queue.aclose()
    await client.aclose()


async def test_the_database_of_a_url_is_used(queues: Queues, server: Server) -> None:
    """Letters of database 1 are not in 0."""
    queue = queues(f"{server.url}?db=1")
    await queue.add({}, delay=60)
    assert server.client.dbsize() == 0
    report = await queue.verify()
    assert (report.clean, report.letters) == (True, 1)


async def test_options_of_the_engine_beat_those_of_the_user(place: Place) -> None:
    """No retries, no health checks, bytes, a timeout: for each connection of each lane."""
    client = place.users_client(decode_responses=True, health_check_interval=5)
    node = Node(seeds_of(client).targets[0], timeout_s=1.25, client_name="uno-dlq-x")
    seen = {}
    for lane in SIZES:
        pool = node.pool(lane)
        connection = await pool.get_connection()
        seen[lane] = connection.socket_timeout
        assert connection.retry._retries == 0
        assert connection.health_check_interval == 0
        assert connection.encoder.decode_responses is False
        assert connection.client_name == "uno-dlq-x"
        await pool.release(connection)
    assert seen == {"commands": 1.25, "work": 1.25, "heartbeats": 1.25, "reads": 5.0}
    await node.close()
    await client.aclose()


@BOTH_LOOPS
@pytest.mark.parametrize("seed", [1, 2])
async def test_cancelled_calls_cross_no_replies_and_leak_no_connection(server: Server, seed: int) -> None:
    """A thousand ECHOs through a network of delays, half of them cancelled somewhere: each reply is its own."""
    chance = random.Random(seed)
    with Proxy(server.url, seed=seed) as proxy:
        proxy.max_delay_s = 0.004
        async with Node(seeds_of(proxy.url).targets[0], timeout_s=20, client_name="uno-dlq-fuzz") as node:
            answered = cancelled = 0

            async def echo(token: str, patience_s: float) -> None:
                nonlocal answered, cancelled
                with anyio.move_on_after(patience_s) as scope:
                    assert await reply_to(token) == token.encode()
                    answered += 1
                cancelled += scope.cancelled_caught

            async def reply_to(token: str) -> Any:
                while True:
                    with suppress(NotConnected):  # a machine that stands still makes no connection within a second
                        return await node.send("ECHO", token)

            async with anyio.create_task_group() as group:
                for n in range(1000):
                    group.start_soon(echo, f"{seed}-{n}", chance.choice([60, chance.random() * 0.3]))
                    if n % 20 == 0:
                        await anyio.sleep(0.002)
            assert answered + cancelled == 1000
            assert min(answered, cancelled) > 50
            for pool in node._pools.values():
                assert not pool._in_use_connections
            proxy.max_delay_s = 0
            assert await node.send("ECHO", "after") == b"after"
        await eventually(lambda: proxy.open_connections == 0)


async def test_hundreds_of_resets_leak_nothing(queues: Queues, place: Place) -> None:
    """Connections in use return to none, and the proxy sees none left open."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis)
        stop = False

        async def use() -> None:
            while not stop:
                with suppress(DeadLetterError):
                    await queue.stats()

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(use)
            while proxy.accepted < 300:
                proxy.reset_all()
                await anyio.sleep(0.003)
            stop = True
        for node in (await queue._store()).topology.nodes:
            for pool in node._pools.values():
                assert not pool._in_use_connections
        await queue.aclose()
        await eventually(lambda: proxy.open_connections == 0)


async def test_no_password_is_told_while_the_network_fails(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that logs in with one, through resets and silence: its log has none of it."""
    caplog.set_level(logging.DEBUG)
    for client in place.clients():
        client.execute_command("ACL", "SETUSER", "rich", "on", ">s3cr3tpw", "~*", "&*", "+@all")
    try:
        with Proxy(place.url) as proxy:
            queue = queues(
                proxy.users_client(username="rich", password="s3cr3tpw"), operation_timeout=0.3, lease_seconds=0.6
            )
            done: list[Any] = []
            queue.add_handler(done.append)
            await patiently(queue.open)
            async with running(queue):
                for _ in range(5):
                    proxy.reset_all()
                    await anyio.sleep(0.05)
                proxy.silence()
                await anyio.sleep(1)
                proxy.heal()
                await eventually(lambda: _can_add(queue))
                await eventually(lambda: done)
            await queue.aclose()
        assert any(record.name.startswith("uno.") and record.levelno == logging.WARNING for record in caplog.records)
        assert "s3cr3tpw" not in caplog.text
        assert "s3cr3tpw" not in repr(queue) + repr(queue.config)
    finally:
        for client in place.clients():
            client.execute_command("ACL", "DELUSER", "rich")


async def _can_add(queue: DeadLetterQueue) -> bool:
    try:
        await queue.add({}, event_id="one", delay=0)
    except DeadLetterError:
        return False
    return True


async def test_whoever_waits_for_a_queue_to_be_opened_does_not_share_what_was_cancelled(stoppable: Server) -> None:
    """It opens the queue itself, whatever was wrong before: a probe gives up sooner than a capture does."""
    queue = DeadLetterQueue(stoppable.url, DeadLetterConfig(operation_timeout=20.0))
    stoppable.stop()
    with pytest.raises(StoreUnavailable):
        await queue.open()
    stoppable.start()
    stoppable.send(signal.SIGSTOP)
    patience = anyio.CancelScope()

    async def probe() -> None:
        with patience:
            await queue.open()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(probe)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(queue.open)
            await anyio.wait_all_tasks_blocked()
            patience.cancel()
            await anyio.wait_all_tasks_blocked()
            stoppable.send(signal.SIGCONT)
    finally:
        stoppable.send(signal.SIGCONT)
    assert (await queue.stats()).open == 0
    await queue.aclose()
