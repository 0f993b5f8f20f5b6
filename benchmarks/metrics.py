"""What metrics cost: µs a letter for the hooks, and ms a scrape of a queue that holds many letters.

The server is one of its own, as small as the letters allow. A scrape is what a worker does for one: a snapshot (one
call a shard and a server, the registry), and the page with 100 pairs of type and subscription.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
from collections.abc import Callable
from time import monotonic, perf_counter, process_time

from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.letter import DeadLetterReason, Lease, Letter, LetterState, NewLetter, Verb
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.telemetry.metrics import PrometheusRecorder
from uno.event_bus.dead_letter.telemetry.recorder import Recorder, Settled, guarded
from uno.event_bus.dead_letter.telemetry.registry import registry_for

QUEUE = "bench"
BATCH = 100
SUBSCRIPTIONS, TYPES = 200, 50


def letter(type: str, subscription: str) -> Letter:
    fields = {b"type": type.encode(), b"subscription": subscription.encode(), b"payload": b"{}"}
    return Letter.from_fields("0-1-1", fields, state=LetterState.LEASED, lease=Lease("w", 1, monotonic() + 60))


def us_a_letter(recorder: Recorder, pairs: list[tuple[str, str]], rounds: int = 5, batches: int = 200) -> float:
    """Return the median cost of all that is told of a letter from its capture to its settle, µs of CPU."""
    new = [NewLetter("e", type, b"", subscription=subscription) for type, subscription in pairs]
    letters = [letter(type, subscription) for type, subscription in pairs]
    costs = []
    for _ in range(rounds):
        began = process_time()
        for _ in range(batches):
            recorder.captured(QUEUE, new)
            for each in letters:
                recorder.started(QUEUE, each, 0.02)
                recorder.attempted(QUEUE, each, 0.003, "")
            recorder.settled(QUEUE, [Settled(each, Verb.RESOLVE, "") for each in letters])
        costs.append((process_time() - began) / batches / len(pairs) * 1e6)
    return statistics.median(costs)


def hooks() -> None:
    one = [("order", "billing")] * BATCH
    known = [(f"t{n}", "s") for n in range(BATCH)]
    for name, pairs, beyond in (("one pair", one, 0), ("100 pairs", known, 0), ("beyond the bound", one, 100)):
        recorder = guarded(PrometheusRecorder(QUEUE, CollectorRegistry()))
        for n in range(beyond):
            recorder.captured(QUEUE, [NewLetter("e", f"other{n}", b"", subscription="s")])
        print(f"hooks, {name + ':':20} {us_a_letter(recorder, pairs):6.2f} µs a letter")
    print(f"hooks, {'none does anything:':20} {us_a_letter(guarded(Recorder()), one):6.2f} µs a letter")
    recorder = guarded(PrometheusRecorder(QUEUE, CollectorRegistry()))
    with TracerProvider().get_tracer("bench").start_as_current_span("process"):
        print(f"hooks, {'with exemplars:':20} {us_a_letter(recorder, one):6.2f} µs a letter")


async def scrapes(url: str, letters: int, shards: int, times: int) -> None:
    config = DeadLetterConfig(queue=QUEUE, shards=shards, max_queue_size=0, dedupe_window=0)
    async with DeadLetterQueue(url, config) as queue:
        began = perf_counter()
        for _ in range(0, letters, BATCH):
            await queue.add_many([{"order": 1}] * BATCH, type="order", delay=3600)
        print(f"captured {letters:,} letters in {perf_counter() - began:.0f} s")
        exposed = registry_for(queue, fresh_s=0.0)
        reasons = itertools.cycle(DeadLetterReason)
        for type, subscription in itertools.product(range(TYPES), range(SUBSCRIPTIONS)):
            pair = f"shop.orders.event-{type}", f"subscription-{subscription}"
            queue._recorder.captured(QUEUE, [NewLetter("e", pair[0], b"", subscription=pair[1], reason=next(reasons))])
            ended = [Settled(letter(*pair), verb, next(reasons)) for verb in Verb]
            queue._recorder.settled(QUEUE, ended)
        snapshots, pages, size = [], [], 0
        for _ in range(times):
            began = perf_counter()
            await exposed.snapshots.refresh()
            taken = perf_counter()
            size = len(generate_latest(exposed.registry))
            snapshots.append((taken - began) * 1e3)
            pages.append((perf_counter() - taken) * 1e3)
        open_now = sum(shard.number("open") for shard in (await exposed.snapshots.refresh()).shards)
        print(f"a scrape with {open_now:,} letters, {shards} shards, {SUBSCRIPTIONS} × {TYPES} pairs: {size:,} bytes")
        for name, found in (("snapshot", snapshots), ("page", pages)):
            print(f"  {name + ':':9} {statistics.median(found):6.1f} ms, at most {max(found):.1f}")


def main() -> None:
    """Parse the options, measure hooks and scrapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--letters", type=int, default=1_000_000, help="letters in the queue (default 1000000)")
    parser.add_argument("--shards", type=int, default=16, help="shards of the queue (default 16)")
    parser.add_argument("--scrapes", type=int, default=50, help="scrapes (default 50)")
    options = parser.parse_args()
    hooks()
    run: Callable[..., None] = asyncio.run
    with tempfile.TemporaryDirectory(prefix="uno-bench-") as directory, EmbeddedServer(directory) as server:
        run(scrapes(server.url, options.letters, options.shards, options.scrapes))


if __name__ == "__main__":
    main()
