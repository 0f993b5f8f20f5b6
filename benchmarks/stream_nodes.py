"""Measure what `stream-node-max-bytes` costs and saves: the figure of deploy/redis/redis.conf comes from here.

A stream keeps its entries in nodes of so many bytes, and frees a node only when all of its entries are gone. Small
nodes cost more for a full queue, large ones keep the bytes of settled neighbours with every survivor.

full        bytes of the stream, all letters waiting ÷ bytes of a letter
survivor    the same when 95 % have been resolved and 5 %, spread evenly, are parked
add, work   time inside the server's commands, µs a letter: the capture; take and settle

One run, one server, one shard: each letter in batches of 100, every size of body with every size of node.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer

NODES = (512, 1024, 2048, 4096, 8192)
BODIES = (300, 1024, 4096)
BATCH = 100
SURVIVES = 20
"""Every so many-th letter is left."""


class Figures(NamedTuple):
    """What one size of node did with one size of body."""

    letter: float
    """Bytes of a letter: the values of its fields and its id, without their names, which a node has once."""
    full: float
    survivor: float
    add_us: float
    work_us: float


def event(number: int, size: int) -> dict[str, Any]:
    """Return an event whose JSON has `size` bytes."""
    empty = {"id": number + 10**6, "note": ""}
    return empty | {"note": "x" * (size - len(json.dumps(empty, separators=(",", ":"))))}


async def server_us(redis: Any) -> float:
    """Return the time that the server has spent in commands, µs; those that a script calls are part of its own."""
    stats = await redis.info("commandstats")
    names = ("evalsha", "eval", "fcall", "fcall_ro", "evalsha_ro")
    return float(sum(stats.get(f"cmdstat_{name}", {"usec": 0})["usec"] for name in names))


async def stream_of(redis: Any) -> tuple[str, int]:
    """Return the key of the one stream of letters, and its bytes in memory."""
    (key,) = [key async for key in redis.scan_iter("dlq:*:letters")]
    return key, int(await redis.memory_usage(key, samples=0))


async def measure(url: str, letters: int, node: int, body: int) -> Figures:
    """Capture letters, resolve 95 % of them, and say what the stream and the server's time came to."""
    redis: Any = Redis.from_url(url, decode_responses=True)
    await redis.flushall()
    await redis.config_set("stream-node-max-bytes", node)
    config = DeadLetterConfig(
        queue="bench", shards=1, max_queue_size=0, max_retries=0, dedupe_window=0, batch_size=BATCH
    )
    async with redis, DeadLetterQueue(url, config) as queue:

        @queue.handler("order")
        async def leave_some(event: dict[str, Any]) -> None:
            if event["id"] % SURVIVES == 0:
                raise ValueError("left")

        began = await server_us(redis)
        for first in range(0, letters, BATCH):
            await queue.add_many([event(first + i, body) for i in range(BATCH)], type="order")
        added = await server_us(redis)
        key, full = await stream_of(redis)
        entries = await redis.xrange(key, count=BATCH)
        letter = sum(len(id) + sum(map(len, fields.values())) for id, fields in entries) / len(entries)
        worked = await server_us(redis)
        await queue.process()
        done = await server_us(redis)
        left = await redis.xlen(key)
        if left != letters // SURVIVES or not (await queue.verify()).clean:
            raise SystemExit(f"{left} letters are left of {letters}")
        _, some = await stream_of(redis)
    return Figures(
        letter, full / letters / letter, some / left / letter, (added - began) / letters, (done - worked) / letters
    )


async def table(url: str, letters: int, nodes: Sequence[int], bodies: Sequence[int]) -> None:
    """Print the figures of every size of node, body by body."""
    await measure(url, min(letters, 10 * BATCH), nodes[0], bodies[0])  # the first run pays for scripts and imports
    for body in bodies:
        print(f"\n{'body':>6} {'node':>6} {'letter':>8} {'full':>8} {'survivor':>18} {'add':>8} {'work':>8}")
        for node in nodes:
            found = await measure(url, letters, node, body)
            survivor = f"{found.survivor:6.2f} × {found.survivor * found.letter / 1000:5.1f} KB"
            row = f"{body:6} {node:6} {found.letter:6.0f} B {found.full:6.2f} × {survivor:>18}"
            print(f"{row} {found.add_us:5.1f} µs {found.work_us:5.1f} µs", flush=True)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=20_000, help="letters a measurement (default 20000)")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="bytes of a node")
    parser.add_argument("--bodies", type=int, nargs="+", default=BODIES, help="bytes of a body, as JSON")
    options = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    letters = options.letters // (SURVIVES * BATCH) * SURVIVES * BATCH
    with tempfile.TemporaryDirectory(prefix="uno-bench-") as data, EmbeddedServer(data) as server:
        print(f"{letters:,} letters, {100 // SURVIVES} % of them left")
        run(table(server.url, letters, options.nodes, options.bodies))


if __name__ == "__main__":
    main()
