"""Measure the engine beside raw Redis Streams: same server, same letters, same run. Prints ratios.

Machines are noisy, so the figures to compare are the ratios; rounds alternate between the engine and raw Redis,
and the median round counts. ``python benchmarks/run.py --help`` tells the options.

processing   one worker, no-op async handler, 300-byte JSON, concurrency 100, a histogram and a counter on
             ÷ XREADGROUP + json decode + XACK + XDEL of the same letters, in batches of 100
capture      `add_many` in batches of 100 ÷ pipelined XADD of the same letters, in batches of 100

Beside them, for what they tell: the raw loop over entries that hold nothing but the payload, and `add_many`
without remembering capture keys. CPU time a letter is given too, of client and server: raw Redis is as fast as the
sum of both, because one waits for the other; the engine's two halves overlap, if the machine has a core for each.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.letter import FIELDS
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.telemetry.metrics import PrometheusRecorder

BATCH = 100
EVENT = {"id": 12345, "kind": "order", "items": [{"sku": "A-1", "count": 2}], "note": "x" * 220}
PAYLOAD = json.dumps(EVENT).encode()

type Fields = dict[Any, Any]


def fields_of_a_letter() -> Fields:
    """Return what `add` writes for this event, so that raw Redis moves the same letters."""
    values: Fields = dict.fromkeys(FIELDS, "")
    return values | {
        "v": "1",
        "event_id": uuid4().hex,
        "type": "order",
        "reason": "unknown",
        "fingerprint": "1:0123456789abcdef",
        "failed_at": "1795488198496",
        "attempts": "0",
        "not_before": "1795488198496",
        "content_type": "application/json",
        "payload": PAYLOAD,
    }


@dataclass
class Meter:
    """Measures parts of a run: how fast they were, and what a letter cost each side."""

    redis: Redis
    letters: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Part → letters a second, round by round."""
    costs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Part → CPU time of client and server, µs a letter, round by round."""

    @asynccontextmanager
    async def measures(self, part: str) -> AsyncGenerator[None]:
        """Measure the block as a round of this part."""
        server_s, client_s, began = await self._server_s(), process_time(), perf_counter()
        yield
        took_s, client_s = perf_counter() - began, process_time() - client_s
        server_s = await self._server_s() - server_s
        self.rates.setdefault(part, []).append(self.letters / took_s)
        cost = (client_s * 1e6 / self.letters, server_s * 1e6 / self.letters)
        self.costs.setdefault(part, []).append(cost)

    async def _server_s(self) -> float:
        cpu: dict[str, Any] = await self.redis.info("cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


async def pipelined_xadd(redis: Redis, key: str, letters: int, fields: Fields) -> None:
    """Add letters by pipelines of XADD."""
    for _ in range(0, letters, BATCH):
        pipeline = redis.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.xadd(key, fields)
        await pipeline.execute()


async def raw_loop(redis: Redis, key: str, letters: int) -> None:
    """Read, decode, acknowledge and delete all letters of a stream."""
    done = 0
    while done < letters:
        reply: Any = await redis.xreadgroup("workers", "one", {key: ">"}, count=BATCH)
        [[_, entries]] = reply
        ids = []
        for id, fields in entries:
            json.loads(fields[b"payload"])
            ids.append(id)
        await redis.xack(key, "workers", *ids)
        await redis.xdel(key, *ids)
        done += len(ids)


async def raw_round(meter: Meter, name: str, fields: Fields) -> None:
    """One round of raw Redis."""
    key = f"raw-{uuid4().hex}"
    async with meter.measures(f"xadd, {name}"):
        await pipelined_xadd(meter.redis, key, meter.letters, fields)
    await meter.redis.xgroup_create(key, "workers", "0")
    async with meter.measures(f"raw loop, {name}"):
        await raw_loop(meter.redis, key, meter.letters)
    await meter.redis.unlink(key)


async def engine_round(meter: Meter, url: str, shards: int, name: str, window_s: float) -> None:
    """One round of the engine: capture letters, and process them."""
    config = DeadLetterConfig(
        queue=f"bench-{uuid4().hex[:8]}",
        shards=shards,
        concurrency=100,
        batch_size=BATCH,
        max_queue_size=0,
        dedupe_window=window_s,
    )
    recorder = PrometheusRecorder(config.queue, CollectorRegistry())
    async with DeadLetterQueue(url, config, recorder=recorder) as dlq:

        @dlq.handler("order")
        async def handle(event: dict[str, object]) -> None:
            pass

        async with meter.measures(f"add_many{name}"):
            for _ in range(0, meter.letters, BATCH):
                await dlq.add_many([EVENT] * BATCH, type="order", delay=0)
        async with meter.measures(f"processing{name}"):
            report = await dlq.process()
        if report.resolved != meter.letters or not (await dlq.verify()).clean:
            raise SystemExit(f"the engine lost letters: {report}")


async def measure(url: str, letters: int, shards: int, rounds: int) -> Meter:
    """Run all rounds."""
    async with Redis.from_url(url) as redis:
        meter = Meter(redis, letters)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            await raw_round(meter, "same letters", fields_of_a_letter())
            await raw_round(meter, "payload only", {"payload": PAYLOAD})
            await engine_round(meter, url, shards, "", 600.0)
            await engine_round(meter, url, shards, ", no capture keys", 0.0)
    return meter


RATIOS = [
    ("processing", "processing", "raw loop, same letters", 0.8),
    ("processing", "processing", "raw loop, payload only", None),
    ("capture", "add_many", "xadd, same letters", 1.3),
    ("capture", "add_many, no capture keys", "xadd, same letters", None),
]
"""What is compared, with what, and the least ratio that is asked for."""


def report(meter: Meter) -> None:
    """Print rates, costs and ratios; the median over the rounds, rates and ratios with the lowest and the highest."""
    print(f"{'':32} {'letters/s':>10}  {'lowest to highest':^18}  CPU µs a letter, client + server")
    for name, found in meter.rates.items():
        client, server = (statistics.median(costs) for costs in zip(*meter.costs[name], strict=True))
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"{name:32} {statistics.median(found):10,.0f}  {spread:^18}  {client:5.1f} + {server:4.1f}")
    print()
    for name, ours, theirs, least in RATIOS:
        ratios = [a / b for a, b in zip(meter.rates[ours], meter.rates[theirs], strict=True)]
        asked = "" if least is None else f"  asked for: {least}"
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}: {ours} ÷ {theirs}: {statistics.median(ratios):.2f} {spread}{asked}")


def main() -> None:
    """Parse the options, start a server unless one is given, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--letters", type=int, default=20_000, help="letters a round (default 20000)")
    parser.add_argument("--shards", type=int, default=4, help="shards of the queue (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts (default 5)")
    parser.add_argument("--redis-url", help="a server to measure on; its keys bench-* and raw-* are used")
    options = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    with contextlib.ExitStack() as life:
        url = options.redis_url
        if url is None:
            directory = life.enter_context(tempfile.TemporaryDirectory(prefix="uno-bench-"))
            url = life.enter_context(EmbeddedServer(directory)).url
        report(run(measure(url, options.letters // BATCH * BATCH, options.shards, options.rounds)))


if __name__ == "__main__":
    main()
