"""Measure what tracing costs: CPU time of this process, µs a letter, with and without it, on one server, in one run.

off         no tracer provider, as in an application without OpenTelemetry
on          the SDK with its batch processor; every span is recorded, and handed to an exporter that drops it
unsampled   the same with a sampler that takes no trace: contexts are made and carried all the same
floor       off, but the handler itself has the SDK make the spans that `on` makes, of constants: one as large as an
            attempt's for each letter, and two with a link to each for every batch. Nobody who makes them can do less

of each     `add` by 20 tasks · `add_many` of 100, a span ``create`` each · the same without those · processing (take,
            handler, settle), of letters that `add_many` captured

Rounds alternate, and the median counts. What is asked for: processing, on - off, at most 25 µs a letter; the SDK alone
takes more than that (floor - off), so look at on - floor as well.
"""

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from time import process_time
from typing import Any, override
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer

BATCH = 100
TASKS = 20
EVENT = {"id": 12345, "kind": "order", "items": [{"sku": "A-1", "count": 2}], "note": "x" * 220}
SAMPLERS: dict[str, Sampler | None] = {
    "off": None,
    "on": ParentBased(ALWAYS_ON),
    "unsampled": ParentBased(TraceIdRatioBased(0.0)),
    "floor": ParentBased(ALWAYS_ON),
}
PARTS = ("add", "add_many", "add_many, no create", "processing")

type Handler = Callable[[dict[str, object]], Awaitable[None]]

type Costs = dict[tuple[str, str], list[float]]
"""Mode and part → µs a letter, round by round."""


class Dropped(SpanExporter):
    """Takes spans and keeps none: what an exporter costs is its own."""

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def nothing(event: dict[str, object]) -> None:
    """Handle an event."""


def bare_spans(provider: TracerProvider) -> Handler:
    """Return a handler that makes the spans of `on`, with all that is in them at hand."""
    tracer = provider.get_tracer("bare")
    capture = SpanContext(1 << 100, 1 << 50, True, TraceFlags(3))
    context = trace.set_span_in_context(NonRecordingSpan(capture), Context())
    attributes: dict[str, str | int] = {f"messaging.of.an.attempt.{number}": "a value" for number in range(8)}
    attributes |= {"dlq.attempt": 1, "dlq.max_attempts": 5}
    handled = 0

    async def handle(event: dict[str, object]) -> None:
        nonlocal handled
        tracer.start_span("process", context, SpanKind.CONSUMER, attributes, [Link(capture)]).end()
        handled += 1
        if handled % BATCH == 0:
            for name in "receive", "ack":
                links = [Link(capture) for _ in range(BATCH)]
                tracer.start_span(name, Context(), SpanKind.CLIENT, attributes, links).end()

    return handle


@asynccontextmanager
async def queue_of(
    url: str, provider: TracerProvider | None, handler: Handler = nothing, **settings: Any
) -> AsyncGenerator[DeadLetterQueue]:
    """Yield a queue that nobody has used."""
    config = DeadLetterConfig(
        queue=f"bench-{uuid4().hex[:8]}", concurrency=100, batch_size=BATCH, max_queue_size=0, **settings
    )
    async with DeadLetterQueue(url, config, tracer_provider=provider) as queue:
        queue.handler("order")(handler)
        yield queue


async def one_by_one(queue: DeadLetterQueue, letters: int) -> None:
    """Capture letters by concurrent tasks, one call each."""

    async def capture() -> None:
        for _ in range(letters // TASKS):
            await queue.add(EVENT, type="order", delay=60)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(capture())


async def in_batches(queue: DeadLetterQueue, letters: int) -> None:
    """Capture letters, 100 a call."""
    for _ in range(letters // BATCH):
        await queue.add_many([EVENT] * BATCH, type="order", delay=0)


async def work_off(queue: DeadLetterQueue, letters: int) -> None:
    """Process letters; stop at once when any of them is not handled."""
    done = await queue.process()
    if done.resolved != letters:
        raise SystemExit(f"the engine lost letters: {done}")


async def measure(url: str, letters: int, rounds: int, modes: Sequence[str]) -> Costs:
    """Run all rounds."""
    costs: Costs = {}

    @contextlib.contextmanager
    def measured(mode: str, part: str) -> Any:
        began = process_time()
        yield
        costs.setdefault((mode, part), []).append((process_time() - began) * 1e6 / letters)

    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for mode in modes:
            sampler, provider = SAMPLERS[mode], None
            if sampler is not None:
                provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
                provider.add_span_processor(BatchSpanProcessor(Dropped()))
            if mode == "floor" and provider is not None:
                async with queue_of(url, None, bare_spans(provider)) as queue:
                    await in_batches(queue, letters)
                    with measured(mode, "processing"):
                        await work_off(queue, letters)
            else:
                async with queue_of(url, provider) as queue:
                    with measured(mode, "add"):
                        await one_by_one(queue, letters)
                async with queue_of(url, provider, create_spans=False) as queue:
                    with measured(mode, "add_many, no create"):
                        await in_batches(queue, letters)
                async with queue_of(url, provider) as queue:
                    with measured(mode, "add_many"):
                        await in_batches(queue, letters)
                    with measured(mode, "processing"):
                        await work_off(queue, letters)
                    if not (await queue.verify()).clean:
                        raise SystemExit("the engine left the queue unclean")
            if provider is not None:
                provider.shutdown()
    return costs


def report(costs: Costs, modes: Sequence[str]) -> None:
    """Print the medians, with the lowest and the highest, and what a mode adds to another, in the same round."""
    print(f"{'CPU, µs a letter':22}" + "".join(f"{mode:>24}" for mode in modes))
    for part in PARTS:
        row = f"{part:22}"
        for found in (costs.get((mode, part)) for mode in modes):
            row += (f"{statistics.median(found):8.1f} ({min(found):.1f} to {max(found):.1f})" if found else "").rjust(
                24
            )
        print(row)
    print()
    pairs = [(mode, modes[0]) for mode in modes[1:]] + [("on", "floor")]
    for (mode, base), part in itertools.product(pairs, PARTS):
        both = list(zip(costs.get((mode, part), ()), costs.get((base, part), ()), strict=False))
        if both:
            added, ratio = (statistics.median(by(a, b) for a, b in both) for by in (float.__sub__, float.__truediv__))
            print(f"{part}: {mode} - {base}: {added:+.1f} µs a letter, ratio {ratio:.2f}")


def main() -> None:
    """Read the options, start a server, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=20_000, help="letters of each part (default 20000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts (default 5)")
    parser.add_argument("--modes", default=",".join(SAMPLERS), help="which, the first is what others are compared with")
    options: Any = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    modes = options.modes.split(",")
    with tempfile.TemporaryDirectory(prefix="uno-bench-") as data, EmbeddedServer(data) as server:
        report(run(measure(server.url, options.letters // BATCH * BATCH, options.rounds, modes)), modes)


if __name__ == "__main__":
    main()
