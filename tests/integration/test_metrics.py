"""Metrics of a worker on real servers: equal to the books, whole by the table, and told of what is away."""

import signal
from collections import Counter
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.integration.conftest import Queues
from tests.integration.test_cluster import answers, no_failover, primary_of_shard
from tests.support.clusters import Cluster
from tests.support.pages import Page
from tests.support.probes import get
from tests.support.servers import Server
from tests.support.standstill import watched
from tests.support.waiting import SOON_S, eventually, in_time, running
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Discard, PartialCapture
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.surveyor import Surveyor
from uno.event_bus.dead_letter.telemetry import names
from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.telemetry.exposition import Exposition
from uno.event_bus.dead_letter.telemetry.names import OTHER, TABLE
from uno.event_bus.dead_letter.telemetry.registry import Exposed, registry_for
from uno.event_bus.dead_letter.worker.session import Report


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey waits for servers that are slow, unless the test is about one that is away."""
    if not {"stoppable", "cluster"} & set(request.fixturenames):
        monkeypatch.setattr(Surveyor.__init__, "__kwdefaults__", {"within_s": SOON_S})


async def page_of(exposed: Exposed) -> Page:
    await exposed.snapshots.refresh()
    return Page(exposed.registry)


def exposing(queue: DeadLetterQueue) -> Exposed:
    return registry_for(queue, fresh_s=0.0)


def shop(queue: DeadLetterQueue) -> None:
    """Handlers that do all that handlers may do."""
    failed: Counter[int] = Counter()

    @queue.handler("paid")
    async def succeed(event: int) -> None:
        pass

    @queue.handler("shipped")
    async def fail_twice(event: int) -> None:
        failed[event] += 1
        if failed[event] <= 2:
            raise ValueError("not yet")

    @queue.handler("refused")
    async def fail(event: int) -> None:
        raise KeyError("always")

    @queue.handler("void")
    def discard(event: int) -> None:
        raise Discard("of no use")

    @queue.handler("slow", timeout=0.02)
    async def hang(event: int) -> None:
        await anyio.sleep(60)

    @queue.handler("typed")
    async def never(event: int) -> None:
        raise AssertionError("it gets no event that is none")


async def fill(queue: DeadLetterQueue) -> None:
    """30 letters: 20 resolve, 4 are discarded, 6 are parked after 3 attempts each, but one of them as invalid."""
    await queue.add_many(range(10), type="paid", delay=0, subscription_id="billing")
    await queue.add_many(range(10), type="shipped", delay=0, error=ValueError("x"))
    await queue.add_many(range(3), type="refused", delay=0, error=TypeError("y"), reason="no such order")
    await queue.add_many(range(4), type="void", delay=0)
    await queue.add_many(range(2), type="slow", delay=0, error=TimeoutError())
    await queue.add("no number", type="typed", delay=0, reason="invalid_event")


async def work_off(queue: DeadLetterQueue) -> Report:
    report = Report()
    while (await queue.stats()).parked < 6:
        done = await queue.process()
        for name in ("resolved", "retried", "parked", "discarded"):
            setattr(report, name, getattr(report, name) + getattr(done, name))
    return report


async def test_counters_equal_the_books(queues: Queues) -> None:
    """Of retries, parks, discards, errors, timeouts and what is invalid: every number, from both sides."""
    queue = queues(max_retries=3, retry_delay=0.01, retry_max_delay=0.01)
    exposed = exposing(queue)
    shop(queue)
    await fill(queue)
    groups = (await queue.stats()).error_groups
    report = await work_off(queue)
    assert (report.resolved, report.retried, report.parked, report.discarded) == (20, 30, 6, 4)
    page, stats = await page_of(exposed), await queue.stats()

    def total(metric: names.Metric) -> float:
        return page.value(metric, queue="default")

    assert {name: total(TABLE[f"dlq_{name}"]) for name in stats.totals} == stats.totals
    assert total(names.NEW_ERROR_GROUPS) == groups > total(names.ERROR_GROUPS) > 0  # some are over
    assert (total(names.QUEUE_SIZE), page.by(names.LETTERS, "state")) == (6, {"parked": 6})
    assert sum(page.by(names.SHARD_SIZE, "shard").values()) == 6
    assert page.by(names.SHARD_UP, "shard") == {"0": 1, "1": 1}

    assert page.by(names.RETRY_COUNT, "attempt") == {"1": 30, "2": 15, "3": 15}
    assert page.by(names.DLQ_ERRORS, "cause") == {"handler": 29, "timeout": 6, "invalid": 1}
    assert total(names.PROCESSING_ERRORS) == 35
    assert page.value(names.PROCESSING_SECONDS, "_count") == 60
    assert page.value(names.SCHEDULE_LAG, "_count") == 60
    assert 0.12 <= page.value(names.PROCESSING_SECONDS, "_sum") < 300

    assert page.by(names.CAPTURES, "type") == Counter(paid=10, shipped=10, refused=3, void=4, slow=2, typed=1)
    assert page.by(names.CAPTURES, "subscription") == {"billing": 10, "": 20}
    assert page.by(names.CAPTURES, "reason") == {
        "unknown": 14, "handler_failed": 10, "no such order": 3, "timeout": 2, "invalid_event": 1,
    }  # fmt: skip
    assert page.by(names.OUTCOMES, "outcome") == {"resolve": 20, "retry": 30, "park": 6, "discard": 4}
    assert page.by(names.OUTCOMES, "outcome", type="slow", reason="timeout") == {"retry": 4, "park": 2}
    assert page.by(names.OUTCOMES, "reason", type="typed") == {"invalid_event": 1}
    assert page.by(names.OUTCOMES, "reason", outcome="discard") == {"": 4}  # not what the handler says


async def test_a_worker_shows_the_table_and_nothing_else(queues: Queues, tmp_path: Path) -> None:
    """Every row has its family, of its kind, with its labels; and no family of ours is outside of the table."""
    queue = queues(spool_dir=str(tmp_path), max_retries=0)
    exposed = exposing(queue)
    shop(queue)
    assert {family.name for family in exposed.registry.collect()} >= set(TABLE)
    async with running(queue):
        await fill(queue)
        await eventually(lambda: _has_parked(queue))
        page = await eventually(lambda: _page_when(exposed, names.SHARD_WORKERS, 2))
    ours = {name: family for name, family in page.families.items() if name.startswith("dlq_")}
    assert ours.keys() == TABLE.keys()
    for name, row in TABLE.items():
        family = ours[name]
        assert (family.type, family.documentation) == (row.kind, row.says)
        assert family.samples, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels), sample
            assert sample.labels["queue"] == "default"
    assert page.value(names.WORKERS) == 1 and page.by(names.SHARD_WORKERS, "shard") == {"0": 1, "1": 1}
    assert page.value(names.HANDLERS_LIMIT) == queue.config.concurrency
    assert "process_cpu_seconds" in page.families
    page = await eventually(lambda: _page_when(exposed, names.WORKERS, 0))  # its resignation may be late
    assert page.value(names.HANDLERS_LIMIT) == 0


async def _has_parked(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == (await queue.stats()).parked == 16


async def test_handlers_that_run_are_counted_while_they_do(queues: Queues) -> None:
    """Those alone, not what a worker holds besides."""
    queue = queues(concurrency=3)
    exposed, may_end = exposing(queue), anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        await may_end.wait()

    async with running(queue):
        await queue.add_many(range(10), delay=0)
        page = await eventually(lambda: _page_when(exposed, names.HANDLERS_RUNNING, 3))
        assert page.value(names.HANDLERS_LIMIT) == 3
        may_end.set()
        await eventually(lambda: _page_when(exposed, names.QUEUE_SIZE, 0))
        assert (await page_of(exposed)).value(names.HANDLERS_RUNNING) == 0


async def _page_when(exposed: Exposed, metric: names.Metric, value: float) -> Page | None:
    page = await page_of(exposed)
    return page if page.value(metric) == value else None


async def test_schedule_lag_is_from_due_to_start(queues: Queues) -> None:
    """Of a letter that waited in the stream, of one that was scheduled; not of one that a replay ran early."""
    queue = queues(shards=1)
    exposed = exposing(queue)
    queue.add_handler(lambda event: None)
    began = monotonic()
    await queue.add("at once", delay=0)
    await anyio.sleep(0.15)
    await queue.process()
    page = await page_of(exposed)
    assert 0.149 <= page.value(names.SCHEDULE_LAG, "_sum") <= monotonic() - began + 0.05
    id = await queue.add("later", delay=60)
    await queue.process()  # takes it in, so that it is scheduled
    began = monotonic()
    await queue.retry(id, delay=0.2)
    await anyio.sleep(0.4)
    await queue.process()
    lag_s = (await page_of(exposed)).value(names.SCHEDULE_LAG, "_sum") - page.value(names.SCHEDULE_LAG, "_sum")
    assert 0.199 <= lag_s <= monotonic() - began - 0.2 + 0.05
    await queue.add("now", delay=60)
    assert tuple(await queue.replay_events()) == (1, 0)
    page = await page_of(exposed)
    assert page.value(names.SCHEDULE_LAG, "_count") == 2 and page.value(names.RETRY_COUNT, attempt="1") == 3


async def test_letters_of_dead_workers_are_counted_when_they_are_taken_back(queues: Queues) -> None:
    """As leases that this worker reclaimed, and in the totals as crashes."""
    queue = queues(lease_seconds=2.0)  # which the worker's own letters keep
    exposed, ran = exposing(queue), list[int]()
    queue.add_handler(ran.append)
    await queue.add_many(range(5), delay=0)
    for shard in (await queue._store()).shards:
        await shard.take("dead", 10)
    async with running(queue):
        await eventually(lambda: len(ran) == 5)
    page = await page_of(exposed)
    assert page.value(names.RECLAIMED) == page.value(names.CRASHED) == 5


async def test_a_spooled_capture_counts_where_it_was_made(spooling: Queues, stoppable: Server) -> None:
    """Once, by the process that captured it; meanwhile it is in the spool, and the queue is told as it was."""
    queue = spooling()
    exposed = exposing(queue)
    await queue.add(1, type="a", delay=60)
    await eventually(lambda: _page_when(exposed, names.CAPTURED, 1))  # a server that is slow has it come by the spool
    await eventually(lambda: _page_when(exposed, names.SPOOL_LETTERS, 0))
    stoppable.stop()
    assert (await queue.add(2, type="a", delay=60)).startswith("spooled:")
    page = await page_of(exposed)
    assert page.value(names.SPOOL_LETTERS) == 1 and page.value(names.SPOOL_BYTES) > 100
    assert 0 <= page.value(names.SPOOL_AGE) < 20
    assert page.by(names.SHARD_UP, "shard") == page.by(names.SERVER_UP, "server") == {}
    assert (page.value(names.CAPTURED), page.value(names.QUEUE_SIZE)) == (1, 1)
    stoppable.start()
    page = await eventually(lambda: _page_when(exposed, names.CAPTURED, 2))
    assert page.value(names.CAPTURES, type="a") == 2
    await eventually(lambda: _page_when(exposed, names.SHARD_UP, 2))


async def test_shards_of_a_node_that_is_away_are_told_as_they_were(cluster: Cluster, queues: Queues) -> None:
    """They and their server are said to be down, no total falls, and the others are told as ever."""
    queue = queues(shards=8)
    exposed = exposing(queue)
    await queue.add_many(range(80), delay=60)
    before = await eventually(lambda: _page_when(exposed, names.SHARD_UP, 8))
    assert before.value(names.SERVER_UP) == 3
    killed = primary_of_shard(cluster, 0)
    theirs = {str(n) for n in range(8) if primary_of_shard(cluster, n) is killed}
    [replica] = cluster.replicas_of(killed)
    with no_failover(replica):
        killed.kill()
        with watched(0.2) as stood_still:
            began = monotonic()
            await exposed.snapshots.refresh()
            took = monotonic() - began
        assert took - stood_still.total_s < 3
        page = await eventually(lambda: _page_when(exposed, names.SHARD_UP, 8 - len(theirs)))
        assert page.by(names.SHARD_UP, "shard").keys() == {str(n) for n in range(8)} - theirs
        assert page.by(names.SHARD_SIZE, "shard") == before.by(names.SHARD_SIZE, "shard")
        assert page.value(names.CAPTURED) == 80
        assert len(page.samples(names.SERVER_UP)) == 3 and page.value(names.SERVER_UP) == 2
    await eventually(partial(answers, queue, 0))
    killed.start()  # as a replica: it has no data any more
    await eventually(lambda: _page_when(exposed, names.SHARD_UP, 8))


async def test_a_shard_that_lost_its_books_makes_no_total_fall(queues: Queues, place: Any) -> None:
    """Prometheus would take that for a restart, and what is left of the sum for new events."""
    queue = queues(shards=4)
    exposed = exposing(queue)
    await queue.add_many(range(200), delay=60)
    assert (await page_of(exposed)).value(names.CAPTURED) == 200
    left = (await queue.stats()).open
    shard = (await queue._store()).shards[2]
    lost = int((await browse.stats(shard))["open"])
    assert 0 < lost < left
    place.client.delete(*place.keys(shard.key("*")))  # of the primary: a replica may still have them, and refuse
    page = await page_of(exposed)
    assert (page.value(names.CAPTURED), page.value(names.QUEUE_SIZE)) == (200, 200 - lost)
    await queue.add_many(range(100), delay=60)
    assert (await page_of(exposed)).value(names.CAPTURED) == 300


async def test_a_server_that_hangs_holds_a_scrape_for_a_bounded_time(stoppable: Server) -> None:
    """And what it held is told as it was."""
    async with DeadLetterQueue(stoppable.url) as queue:
        await queue.add(1, delay=60)
        before = await Surveyor("default", queue._store, queue.spool_stats, within_s=SOON_S).survey()
        found = before

        async def survey() -> float:
            nonlocal found
            began = monotonic()
            found = await Surveyor("default", queue._store, queue.spool_stats, within_s=0.3).survey(before)
            took = monotonic() - began
            assert took >= 0.3
            return took

        stoppable.send(signal.SIGSTOP)
        try:
            await in_time(survey, 1)
        finally:
            stoppable.send(signal.SIGCONT)
        assert [shard.is_up for shard in found.shards] == [False] * 4 and found.total("open") == 1
        assert [server.is_up for server in found.servers.values()] == [False] and found.workers is None


async def test_a_scrape_tells_that_a_server_hangs(stoppable: Server) -> None:
    """With all bounds as they are: the page waits for the answers longer than they are waited for."""
    async with DeadLetterQueue(stoppable.url, DeadLetterConfig(shards=1)) as queue:
        await queue.add(1, delay=60)
        exposed = exposing(queue)
        assert (await page_of(exposed)).value(names.SERVER_UP) == 1
        told = Condition(True)
        async with Exposition(
            exposed.registry,
            host="127.0.0.1",
            port=0,
            refresh=exposed.snapshots.refresh,
            live=lambda: told,
            ready=lambda: told,
        ) as served:
            stoppable.send(signal.SIGSTOP)
            try:
                answer = await anyio.to_thread.run_sync(get, served.url, "/metrics")
            finally:
                stoppable.send(signal.SIGCONT)
    lines = answer.body.decode().splitlines()
    assert 'dlq_shard_up{queue="default",shard="0"} 0.0' in lines
    assert [line[-4:] for line in lines if line.startswith("dlq_server_up{")] == [" 0.0"]


async def test_a_server_that_refuses_info_is_down_and_told_as_it_was(stoppable: Server) -> None:
    """Noughts would look like a server that has begun anew, and its traffic since like a burst."""
    async with DeadLetterQueue(stoppable.url, DeadLetterConfig(shards=1)) as queue:
        exposed = exposing(queue)
        await queue.add(1, delay=60)
        before = await page_of(exposed)
        assert before.value(names.SERVER_MEMORY) > 0
        stoppable.client.execute_command("ACL", "SETUSER", "default", "-info")
        page = await page_of(exposed)
        assert page.value(names.SERVER_UP) == 0
        for metric in (names.SERVER_MEMORY, names.SERVER_CPU, names.SERVER_NETWORK):
            assert page.value(metric) == before.value(metric)
        assert (page.value(names.SHARD_UP), page.value(names.QUEUE_SIZE)) == (1, 1)


async def test_servers_are_told_as_they_say(place: Any, queues: Queues) -> None:
    """Memory by the limit, else by the machine's; CPU; bytes; and which may evict letters."""
    queue = queues()
    exposed = exposing(queue)
    await queue.add(1, delay=60)
    used = [int(client.info("memory")["used_memory"]) for client in place.clients()]
    page = await page_of(exposed)
    assert 0 < page.samples(names.SERVER_MEMORY_RATIO)[0].value < 0.5
    for client in place.clients():
        client.config_set("maxmemory", 2 * max(used))
        client.config_set("maxmemory-policy", "allkeys-lru")
    page = await page_of(exposed)
    servers = page.by(names.SERVER_UP, "server")
    for ratio in page.samples(names.SERVER_MEMORY_RATIO):
        assert ratio.value == page.value(names.SERVER_MEMORY, server=ratio.labels["server"]) / (2 * max(used))
    assert page.value(names.EVICTING_SERVERS) == len(servers)
    assert page.value(names.SERVER_CPU) > 0 and set(page.by(names.SERVER_NETWORK, "direction")) == {"received", "sent"}
    for client in place.clients():
        client.config_set("maxmemory", 0)


async def test_pairs_beyond_the_bound_are_counted_together(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """By captures and outcomes alike."""
    monkeypatch.setattr("uno.event_bus.dead_letter.telemetry.labels.MOST_PAIRS", 3)
    queue = queues()
    exposed = exposing(queue)
    queue.add_handler(lambda event: None)
    for n in range(6):
        await queue.add(n, type=f"t{n}", subscription_id="s", delay=0)
    await queue.process()
    page = await page_of(exposed)
    expected = {"t0": 1, "t1": 1, "t2": 1, OTHER: 3}
    assert page.by(names.CAPTURES, "type") == page.by(names.OUTCOMES, "type") == expected


async def test_words_of_people_are_no_labels(queues: Queues) -> None:
    """A parked letter that a replay puts back is released: why an operator parked it is not told."""
    queue = queues()
    exposed = exposing(queue)
    id = await queue.add(1, type="a", delay=60)
    await queue.park(id, "ask Ann, 0171 5551234")
    began = anyio.Event()

    @queue.handler()
    async def hang(event: int) -> None:
        began.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(partial(queue.replay_events, where={"state": "parked"}))
        await began.wait()
        group.cancel_scope.cancel()
    page = await page_of(exposed)
    assert page.by(names.OUTCOMES, "outcome") == {"release": 1} and page.by(names.OUTCOMES, "reason") == {"": 1}
    assert b"Ann" not in page.bytes
    assert (await queue.get(id)).counters.reason == "ask Ann, 0171 5551234"


async def test_what_was_not_captured_is_not_counted(queues: Queues) -> None:
    """A queue that is full."""
    queue = queues(shards=1, max_queue_size=2)
    exposed = exposing(queue)
    with pytest.raises(PartialCapture):
        await queue.add_many(range(5), delay=60)
    page = await page_of(exposed)
    assert page.value(names.CAPTURES) == page.value(names.QUEUE_SIZE) == (await queue.stats()).open < 5
