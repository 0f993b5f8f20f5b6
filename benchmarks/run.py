"""Measure the engine beside raw Redis Streams: same server, same letters, same run. Prints ratios.

Machines are noisy, so the figures to compare are the ratios; rounds alternate between the engine and raw Redis,
and the median round counts. ``python benchmarks/run.py --help`` tells the options.

processing   one worker, no-op async handler, 300-byte JSON, concurrency 100, a histogram and a counter on
             ÷ XREADGROUP + json decode + XACK + XDEL of the same letters, in batches of 100
capture      `add_many` in batches of 100 ÷ pipelined XADD of the same letters, in batches of 100

Beside them, for what they tell: the raw loop over entries that hold nothing but the payload, and `add_many`
without remembering capture keys.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter
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


async def pipelined_xadd(redis: Redis, key: str, letters: int, fields: Fields) -> float:
    """Add letters by pipelines of XADD; return letters a second."""
    started = perf_counter()
    for _ in range(0, letters, BATCH):
        pipeline = redis.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.xadd(key, fields)
        await pipeline.execute()
    return letters / (perf_counter() - started)


async def raw_loop(redis: Redis, key: str, letters: int) -> float:
    """Read, decode, acknowledge and delete all letters of a stream; return letters a second."""
    await redis.xgroup_create(key, "workers", "0")
    started = perf_counter()
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
    return letters / (perf_counter() - started)


async def engine(url: str, letters: int, shards: int, window_s: float) -> tuple[float, float]:
    """Capture letters and process them; return both rates, letters a second."""
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

        started = perf_counter()
        for _ in range(0, letters, BATCH):
            await dlq.add_many([EVENT] * BATCH, type="order", delay=0)
        captured = letters / (perf_counter() - started)
        started = perf_counter()
        report = await dlq.process()
        processed = letters / (perf_counter() - started)
        if report.resolved != letters or not (await dlq.verify()).clean:
            raise SystemExit(f"the engine lost letters: {report}")
        return captured, processed


async def measure(url: str, letters: int, shards: int, rounds: int) -> dict[str, list[float]]:
    """Run all rounds; return the rates of each thing that was measured."""
    rates: dict[str, list[float]] = {}
    redis = Redis.from_url(url)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name, fields in (("same letters", fields_of_a_letter()), ("payload only", {"payload": PAYLOAD})):
            key = f"raw-{uuid4().hex}"
            rates.setdefault(f"xadd, {name}", []).append(await pipelined_xadd(redis, key, letters, fields))
            rates.setdefault(f"raw loop, {name}", []).append(await raw_loop(redis, key, letters))
            await redis.unlink(key)
        for name, window_s in (("", 600.0), (", no capture keys", 0.0)):
            captured, processed = await engine(url, letters, shards, window_s)
            rates.setdefault(f"add_many{name}", []).append(captured)
            rates.setdefault(f"processing{name}", []).append(processed)
    await redis.aclose()
    return rates


RATIOS = [
    ("processing", "processing", "raw loop, same letters", 0.8),
    ("processing", "processing", "raw loop, payload only", None),
    ("capture", "add_many", "xadd, same letters", 1.3),
    ("capture", "add_many, no capture keys", "xadd, same letters", None),
]
"""What is compared, with what, and the least ratio that is asked for."""


def report(rates: dict[str, list[float]]) -> None:
    """Print rates and ratios; the median over the rounds, with the lowest and the highest."""
    for name, found in rates.items():
        print(f"{name:32} {statistics.median(found):10,.0f} letters/s  ({min(found):,.0f} to {max(found):,.0f})")
    print()
    for name, ours, theirs, least in RATIOS:
        ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
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
