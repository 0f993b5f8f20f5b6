"""The queue over HTTP: counts, workers, health, books, growth; and the probes of the service."""

import gzip
from typing import Any

import anyio
import msgspec
import pytest

from tests.integration.conftest import Queues
from tests.support.servers import Server
from tests.support.service import app_of, client_of
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.remote.wire import Answers, Health, QueueInfo, Stats, Verified, Workers
from uno.event_bus.dead_letter.telemetry.registry import registry_for

LINES = {"accept": "application/x-ndjson"}


async def got[T](queue: DeadLetterQueue, path: str, kind: type[T], method: str = "GET", **how: Any) -> T:
    async with client_of(app_of(queue)) as client:
        answer = await client.request(method, path, **how)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=kind)


async def test_the_queue_tells_what_a_client_has_to_know(queues: Queues) -> None:
    """As it is configured, and as many shards as it has."""
    queue = queues(dedupe_window=60, max_payload_bytes=2048, max_queue_size=99)
    await queue.reshard(8)
    assert await got(queue, "/v1/queue", QueueInfo) == QueueInfo(queue.config.queue, 8, 60, 2048, 99)


async def test_stats_and_books_are_those_of_the_queue(queues: Queues) -> None:
    """Every field."""
    queue = queues()
    ids = await queue.add_many([{}] * 5, delay=60)
    await queue.discard(ids[0], "why")
    stats, ours = await got(queue, "/v1/stats", Stats), await queue.stats()
    assert (stats.open, stats.totals, stats.oldest_ms) == (4, ours.totals, ours.oldest_ms)
    assert (stats.shards, len(stats.by_shard), stats.spool) == (2, 2, None)
    verified = await got(queue, "/v1/verify", Verified, "POST")
    assert (verified.clean, verified.letters, verified.captured, verified.discarded) == (True, 4, 5, 1)


async def test_a_check_is_told_as_lines_too(queues: Queues) -> None:
    """Progress first, what was found last."""
    queue = queues()
    await queue.add_many([{}] * 5, delay=60)
    async with client_of(app_of(queue)) as client:
        answer = await client.post("/v1/verify", headers=LINES)
    first, *_, last = [msgspec.json.decode(line, type=Answers) for line in answer.content.splitlines()]
    assert first.progress == 0.0
    assert last.verified is not None and last.verified.clean and last.verified.letters == 5


async def test_workers_and_health_are_those_of_the_queue(queues: Queues) -> None:
    """A worker that runs is there with its shards."""
    queue, ready, stop = queues(), anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: queue.run(stop=stop, ready=ready))
        await ready.wait()
        told = await got(queue, "/v1/workers", Workers)
        stop.set()
    assert [worker.shards for worker in told.workers] == [(0, 1)]
    health = await got(queue, "/v1/health", Health)
    assert health.healthy and {"layout", "shard 0", "shard 1"} <= {one.check for one in health.checks}


async def test_a_queue_grows(queues: Queues) -> None:
    """A count that it cannot have is 400."""
    queue = queues()
    async with client_of(app_of(queue)) as client:
        assert (await client.post("/v1/shards", json={"shards": 4})).json()["shards"] == 4
        wrong = await client.post("/v1/shards", json={"shards": 3})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "config_invalid")


async def test_metrics_are_negotiated(queues: Queues, server: Server) -> None:
    """Text, or OpenMetrics; gzipped where that is accepted; captures through the service are counted."""
    queue = queues()
    async with client_of(app_of(queue)) as client:
        await client.post("/v1/letters", json={"type": "Order", "payload": 1, "delay_ms": 60_000})
        plain = await client.get("/metrics", headers={"accept-encoding": "identity"})
        assert plain.headers["content-type"].startswith("text/plain; version=")
        captured = [line for line in plain.text.splitlines() if 'type="Order"' in line]
        assert captured and captured[0].endswith(" 1.0"), plain.text
        assert 'dlq_queue_size{queue="default"} 1.0' in plain.text
        openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        async with client.stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as packed:
            raw = b"".join([part async for part in packed.aiter_raw()])
        assert packed.headers["content-encoding"] == "gzip" and b"dlq_queue_size" in gzip.decompress(raw)


async def test_a_service_is_ready_while_every_shard_answers(queues: Queues, stoppable: Server) -> None:
    """The process lives on when Redis is away; a service that stops is not ready."""
    queue, stop = queues(stoppable.url, operation_timeout=0.3), anyio.Event()
    exposed = registry_for(queue, fresh_s=0)
    async with client_of(app_of(queue, stop, open_to_all=False, exposed=exposed)) as client:

        async def is_ready() -> bool:
            return bool((await client.get("/readyz")).json() == {"ok": True, "shards": 2, "of": 2})

        await eventually(is_ready)
        stoppable.stop()
        try:
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json() == {"ok": False, "why": "2 of 2 shards do not answer", "of": 2}
            assert (await client.get("/healthz")).json() == {"ok": True}
        finally:
            stoppable.start()
        stop.set()
        assert (await client.get("/readyz")).json() == {"ok": False, "why": "the service stops"}


async def test_a_service_that_never_reached_redis_is_not_ready(queues: Queues, server: Server) -> None:
    """Within bounds of time."""
    queue = queues("redis://localhost:1/0", operation_timeout=0.1)
    async with client_of(app_of(queue)) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)


@pytest.mark.parametrize("path", ["/v1/stats", "/v1/letters", "/v1/letters/0-1-0", "/v1/workers", "/v1/health"])
async def test_while_redis_is_away_reads_are_503(queues: Queues, server: Server, path: str) -> None:
    """With the engine's code, for clients to try again."""
    queue = queues("redis://localhost:1/0", operation_timeout=0.1)
    async with client_of(app_of(queue)) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
