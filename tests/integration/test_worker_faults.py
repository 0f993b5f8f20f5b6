"""Faults of server and network under a running worker: it goes on by itself soon after they are over."""

import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues, queues_on
from tests.support.load import RESUMES_S, finish, under_load
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually, running
from uno.event_bus.dead_letter import DeadLetterError, DeadLetterQueue, QueueFull
from uno.event_bus.dead_letter.store.layout import SHARD_KEYS, shard_key
from uno.event_bus.dead_letter.worker import sweeper

pytestmark = pytest.mark.timed(0.2)
"""Leases of a second, and less, are kept; and work goes on soon."""

# -- faults that lose nothing -----------------------------------------------------------------------------


async def test_client_kill_storms_are_survived(queues: Queues, place: Place) -> None:
    """Every connection is closed every 50 ms for two seconds: nothing is lost, and no letter runs twice at a time."""
    async with under_load(queues) as load:
        for _ in range(40):
            for client in place.clients():
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(0.05)
        await finish(load)


async def test_script_flush_every_50_ms_is_invisible(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """NOSCRIPT is one more round trip: no error reaches the producer, nothing is logged, nothing runs twice."""
    async with under_load(queues) as load:
        for _ in range(30):
            for client in place.clients():
                client.script_flush()
            await anyio.sleep(0.05)
        await finish(load)
        assert load.errors == []
        assert max(load.ran.values()) == 1
    assert [
        record for record in caplog.records if record.levelno >= logging.WARNING and "policy" not in record.message
    ] == []


async def test_a_server_that_hangs_for_two_leases_is_waited_for(queues: Queues, server: Server) -> None:
    """SIGSTOP: an outage of the server reclaims nothing that lives."""
    async with under_load(queues) as load:
        server.send(signal.SIGSTOP)
        try:
            await anyio.sleep(2.2)
        finally:
            server.send(signal.SIGCONT)
        await finish(load)
        assert (await load.producer.stats()).totals["crashed"] == 0


async def test_an_outage_counts_no_crash_of_letters_whose_workers_live(queues: Queues, server: Server) -> None:
    """Handlers run while the server hangs for two leases: what was asked for during the outage comes too late to harm.

    Their workers could not renew the leases, so the letters may run again; but nobody died.
    """
    workers = [queues(lease_seconds=1, operation_timeout=5, concurrency=20, shards=1) for _ in range(2)]
    running_now = 0

    async def handle(event: int) -> None:
        nonlocal running_now
        running_now += 1
        try:
            await anyio.sleep(4)
        finally:
            running_now -= 1

    for worker in workers:
        worker.add_handler(handle)
    async with running(workers[0]), running(workers[1]):
        await workers[0].add_many(list(range(30)), delay=0)
        await eventually(lambda: running_now == 30)
        await anyio.sleep(1.2)  # the reclaimers are in touch
        server.send(signal.SIGSTOP)
        try:
            await anyio.sleep(2.2)
        finally:
            server.send(signal.SIGCONT)
        await eventually(lambda: _is_empty(workers[0]))
    assert (await workers[0].stats()).totals["crashed"] == 0


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0


@pytest.fixture
def restartable(server: Server) -> Iterator[Server]:
    """A server of the test's own, with its data in a file, which no end of the process loses."""
    with Server(server.name, "--appendonly", "yes", "--appendfsync", "no") as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_restarts_loses_no_acknowledged_letter(restartable: Server, number: signal.Signals) -> None:
    """With its data in a file; down for a second, with the worker at work."""
    async with queues_on(restartable) as queues, under_load(queues) as load:
        restartable.stop(number)
        await anyio.sleep(1.0)
        await anyio.to_thread.run_sync(restartable.start)
        await finish(load)


async def test_a_silent_network_is_noticed_and_left(queues: Queues, place: Place) -> None:
    """Nothing passes for two leases and nobody says so: new connections serve soon after it heals."""
    with Proxy(place.url) as proxy:
        async with under_load(queues, proxy.redis) as load:
            proxy.silence()
            await anyio.sleep(2.2)
            proxy.heal()
            await finish(load)
        await load.worker.aclose()


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_network_of_delays_and_resets_loses_nothing(queues: Queues, place: Place, seed: int) -> None:
    """Every chunk is late by up to 10 ms, every 150 ms all connections are reset."""
    with Proxy(place.url, seed=seed) as proxy:
        async with under_load(queues, proxy.redis) as load:
            proxy.max_delay_s = 0.01
            for _ in range(12):
                await anyio.sleep(0.15)
                proxy.reset_all()
            proxy.max_delay_s = 0
            await finish(load)
        await load.worker.aclose()


async def test_an_outage_is_said_once_and_not_by_every_role_for_ever(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Four shards, five roles each, 1.5 s without an answer: a line a cause, and one when it is over."""
    caplog.set_level(logging.INFO)
    with Proxy(place.url) as proxy:
        async with under_load(queues, proxy.redis, shards=4, operation_timeout=0.2) as load:
            caplog.clear()
            proxy.refusing = True
            proxy.reset_all()
            await anyio.sleep(1.5)
            proxy.heal()
            await finish(load)
            await eventually(lambda: any(line.startswith("over after") for line in caplog.messages))
        await load.worker.aclose()
    about = ("refused", "reset", "closed before", "lost. at", "unavailable", "proxy.sock")
    said = [line for line in caplog.messages if any(word in line for word in about)]
    failures = [line for line in said if not line.startswith("over after")]
    assert 1 <= len(failures) <= 5, said  # how the connections break: on read, on write, on connect
    assert 1 <= len(said) - len(failures) <= len(failures), said  # an end for each that was said, at most


async def test_a_server_without_memory_goes_on_draining(queues: Queues, limit_memory: Callable[[str], None]) -> None:
    """The producer hears `QueueFull`; workers settle what there is, retries and parking included."""
    async with under_load(queues) as load:
        failing = load.worker.add_handler(_fail, "failing", retry=[0.01, 0.01])
        await load.producer.add_many(list(range(20)), type="failing", delay=0)
        limit_memory("1mb")
        await eventually(lambda: any(isinstance(error, QueueFull) for error in load.errors))
        await eventually(lambda: _parked(load.producer, 20))
        limit_memory("0")
        assert await load.resumed() < RESUMES_S
        await load.end()
        await eventually(lambda: _open(load.producer, 20))
        assert not load.acknowledged - set(load.ran)
        assert load.worker.remove_handler(failing)


async def _fail(event: Any) -> None:
    raise ValueError


async def _parked(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).parked == count


async def _open(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).open == count


async def test_a_destroyed_group_costs_no_letter_and_no_second_end(queues: Queues, place: Place) -> None:
    """Ten times during load: leases are gone, the letters are found again by repair."""
    async with under_load(queues) as load:
        for _ in range(10):
            for shard in range(2):
                place.client.xgroup_destroy(shard_key("default", shard, "letters"), "workers")
            await anyio.sleep(0.1)
        await finish(load)
        totals = (await load.producer.stats()).totals
        assert totals["resolved"] == totals["captured"]


# -- faults that delete -----------------------------------------------------------------------------------


async def test_a_group_that_repair_finds_missing_is_repaired_at_once(
    queues: Queues, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever script makes it again: thousands of letters that were leased do not wait for the thin walk."""
    queue = queues(lease_seconds=0.6, shards=1)
    await queue.add_many(list(range(6000)), delay=0)
    shard = (await queue._store()).shards[0]
    for _ in range(6):
        await shard.take("a worker that died", 1000)
    server.client.xgroup_destroy(shard.key("letters"), "workers")
    repair, was_repaired = shard.repair, anyio.Event()
    take = shard.take

    async def take_after_repair(*args: Any, **how: Any) -> Any:
        await was_repaired.wait()
        return await take(*args, **how)

    async def repair_first(*args: Any, **how: Any) -> Any:
        monkeypatch.setattr(sweeper, "PART_TICKS", 1000)  # that walk comes to its next part in minutes
        found = await repair(*args, **how)
        was_repaired.set()
        return found

    shard.take, shard.repair = take_after_repair, repair_first  # type: ignore[method-assign]
    queue.add_handler(_nothing)
    async with running(queue):
        await eventually(lambda: _resolved(queue, 6000))
    assert (await queue.stats()).totals["orphaned"] == 6000


async def _nothing(event: Any) -> None:
    pass


async def _resolved(queue: DeadLetterQueue, count: int) -> bool:
    return (await queue.stats()).totals["resolved"] == count


@pytest.mark.parametrize("what", ["stream", "everything"])
async def test_work_goes_on_after_a_deletion(queues: Queues, place: Place, what: str) -> None:
    """Letters that were there are lost and counted as such; later ones are run."""
    async with under_load(queues) as load:
        scheduled = await load.producer.add_many(list(range(10)), type="scheduled", delay=3600)
        assert len(scheduled) == 10
        if what == "stream":
            for shard in range(2):
                place.client.delete(shard_key("default", shard, "letters"))
        else:
            place.flush()
        assert await load.resumed() < RESUMES_S
        await load.end()
        await load.settled()
        await eventually(lambda: _is_clean(load.producer))
        report = await load.producer.verify()
        queues.lost_externally = report.lost_externally
        if what == "stream":
            assert 10 <= report.lost_externally <= 10 + 60
        else:
            assert report.lost_externally <= 60


async def _is_clean(queue: DeadLetterQueue) -> bool:
    return (await queue.verify()).clean


@pytest.mark.parametrize("name", [name for name in SHARD_KEYS if name not in ("holds", "outcomes", "edits")])
async def test_a_key_of_another_type_stops_its_shard_and_no_other_until_it_is_gone(
    queues: Queues, place: Place, name: str
) -> None:
    """The other shard's letters are run meanwhile; after the key is deleted, so are this one's."""
    async with under_load(queues) as load:
        await load.end()
        key = shard_key("default", 0, name)
        place.client.set(key, "x")
        home: dict[int, str] = {}

        async def keeps_serving() -> bool:
            number = 1_000_000 + len(home)
            home[number] = "asked"
            try:
                id = await load.producer.add(number, event_id=str(number), delay=0)
            except DeadLetterError:
                return False
            if not id.startswith("1-"):
                return False
            await eventually(lambda: load.ran[number])
            return True

        await eventually(keeps_serving)
        place.client.delete(key)
        for _ in range(6):
            assert await load.resumed() < RESUMES_S
        await load.settled()
        await eventually(lambda: _is_clean(load.producer))
        queues.lost_externally = (await load.producer.verify()).lost_externally
        assert queues.lost_externally == 0 or name in ("letters", "meta")


async def test_a_reader_without_rights_says_so_without_a_password(queues: Queues, place: Place) -> None:
    """NOPERM is told as what it is."""
    for client in place.clients():
        client.execute_command("ACL", "SETUSER", "poor", "on", ">s3cr3t", "+@connection", "+info", "~*")
    try:
        queue = queues(place.url_of("poor", "s3cr3t"), operation_timeout=10)
        with pytest.raises(DeadLetterError) as refused:
            await queue.add({})
        assert "s3cr3t" not in str(refused.value)
        assert "perm" in str(refused.value).lower()
    finally:
        for client in place.clients():
            client.execute_command("ACL", "DELUSER", "poor")
