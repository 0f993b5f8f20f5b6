"""Measure the spool: what it costs while Redis is well, and how fast letters go through it when Redis is not.

beside      `add` by 20 tasks, with and without ``spool_dir``, on the same server. What a shared machine leaves of the
            rate varies, so the ratio is that of this process's CPU time a letter; it must be near 1
into it     `add` by 20 tasks while the server is away: each batch of calls is one fsync of the disk at ``--dir``
out of it   the same letters into Redis when it is back

Rounds alternate, and the median counts.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer

TASKS = 20
EVENT = {"id": 12345, "kind": "order", "items": [{"sku": "A-1", "count": 2}], "note": "x" * 220}


def queue_of(url: str, name: str, spool_dir: str | None) -> DeadLetterQueue:
    """Return a queue that takes any number of letters."""
    return DeadLetterQueue(
        url,
        DeadLetterConfig(queue=name, max_queue_size=0, spool_dir=spool_dir, spool_max_bytes=10_000_000_000),
    )


async def captured(queue: DeadLetterQueue, letters: int) -> tuple[float, float]:
    """Capture letters, one call each, by concurrent tasks; return letters a second, and CPU seconds a letter."""

    async def capture() -> None:
        for _ in range(letters // TASKS):
            await queue.add(EVENT, type="order", error="no", delay=60)

    started, started_cpu = perf_counter(), process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(capture())
    return letters / (perf_counter() - started), (process_time() - started_cpu) / letters


async def sent(queue: DeadLetterQueue, letters: int) -> float:
    """Wait until the spool is empty; return letters a second."""
    started = perf_counter()
    await queue.open()
    while (await queue.stats()).open < letters:  # noqa: ASYNC110 - it is to be seen by polling alone
        await asyncio.sleep(0.01)
    return letters / (perf_counter() - started)


async def measure(url: str, letters: int, rounds: int, folder: str) -> tuple[dict[str, list[float]], list[float]]:
    """Run all rounds; return the rates of each thing that was measured, and the ratios of CPU time."""
    rates: dict[str, list[float]] = {"without": [], "beside": [], "into it": [], "out of it": []}
    cpu: dict[str, list[float]] = {"without": [], "beside": []}
    for turn in range(rounds):
        for name, spool_dir in (("without", None), ("beside", folder)):
            async with queue_of(url, f"{name}-{turn}", spool_dir) as queue:
                await captured(queue, letters // 10)
                rate, cpu_s = await captured(queue, letters)
                rates[name].append(rate)
                cpu[name].append(cpu_s)
        async with queue_of("unix:///nowhere.sock", f"away-{turn}", folder) as queue:
            rates["into it"].append((await captured(queue, letters))[0])
        async with queue_of(url, f"away-{turn}", folder) as queue:
            rates["out of it"].append(await sent(queue, letters))
            if not (await queue.verify()).clean:
                raise SystemExit("letters were lost or doubled")
    return rates, [a / b for a, b in zip(cpu["beside"], cpu["without"], strict=True)]


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", help="a directory on the disk to measure; default: a temporary one")
    options: Any = parser.parse_args()
    run: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    with (
        tempfile.TemporaryDirectory(prefix="uno-bench-") as data,
        tempfile.TemporaryDirectory(prefix="uno-bench-", dir=options.dir) as folder,
        EmbeddedServer(data) as server,
    ):
        rates, ratios = run(measure(server.url, options.letters // TASKS * TASKS, options.rounds, folder))
    for name, found in rates.items():
        print(f"{name:10} {statistics.median(found):9,.0f} letters/s  ({min(found):,.0f} to {max(found):,.0f})")
    print(f"CPU, beside ÷ without: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
