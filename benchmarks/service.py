"""Measure capture through the service beside capture in process: same Redis, same letters, same run. Prints ratios.

batches   `add_many` of 100, one after the other, and by 4 tasks: letters/s of a remote queue ÷ of one on Redis itself.
          Asked for: at least 0.5
singles   `add` on a remote queue, 500 a second (each begins at its time, whatever became of those before): latency.
          Asked for: p99 below 20 ms

Client, service and Redis are three processes of this machine, so they share its cores: with two, the client of the
remote queue has less of them than the one in process. Rounds alternate, and the median counts.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from time import perf_counter
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer

BATCH = 100
EVENT = {"id": 12345, "kind": "order", "items": [{"sku": "A-1", "count": 2}], "note": "x" * 220}
START_S = 20.0


@contextmanager
def service(redis_url: str, queue: str) -> Generator[str]:
    """Run the service in a process of its own; yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {"DLQ_REDIS_URL": redis_url, "DLQ_QUEUE": queue, "DLQ_SERVICE_PORT": str(port)}
    environ |= {"DLQ_LOG_LEVEL": "warning", "DLQ_MAX_QUEUE_SIZE": "0", "DLQ_SERVICE_RATE": "0"}
    command = [sys.executable, "-m", "uno.cli.main", "dead-letter", "service"]
    with subprocess.Popen(command, env=environ) as process:
        try:
            _ready(f"http://127.0.0.1:{port}/readyz")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _ready(url: str) -> None:
    until = perf_counter() + START_S
    while True:
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            if perf_counter() > until:
                raise


async def in_batches(queue: DeadLetterQueue, letters: int, tasks: int) -> float:
    """Capture letters, 100 a call, by so many tasks; return letters a second."""

    async def capture() -> None:
        for _ in range(letters // tasks // BATCH):
            await queue.add_many([EVENT] * BATCH, type="order", delay=3600)

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(capture())
    return letters / (perf_counter() - began)


async def singles(queue: DeadLetterQueue, rate: int, seconds: float) -> list[float]:
    """Capture one letter after the other at this rate; return how long each took, ms, from when it had to begin."""
    took: list[float] = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def capture(due: float) -> None:
        await queue.add(EVENT, type="order", delay=3600)
        took.append((loop.time() - due) * 1000)

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(capture(due))
    return sorted(took)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of sorted values lies."""
    return values[min(len(values) - 1, int(len(values) * share))]


async def main(letters: int, rounds: int, rate: int, seconds: float) -> int:
    """Measure, print, and return the exit status: 1 when a figure falls short."""
    with tempfile.TemporaryDirectory(prefix="uno-bench-") as folder, EmbeddedServer(folder) as server:
        name = f"bench-{uuid4().hex[:8]}"
        config = DeadLetterConfig(queue=name, max_queue_size=0)
        with service(server.url, name) as url:
            async with DeadLetterQueue(server.url, config) as local, DeadLetterQueue(url, config) as remote:
                ratios = [await _compared(local, remote, letters, rounds, tasks) for tasks in (1, 4)]
                await singles(remote, rate, 1)
                took = await singles(remote, rate, seconds)
                assert (await local.verify()).clean
    p99 = percentile(took, 0.99)
    print(
        f"singles at {rate}/s: p50 {percentile(took, 0.5):.1f} ms, p99 {p99:.1f} ms, longest {took[-1]:.1f} ms; "
        "asked for: p99 < 20 ms"
    )
    return int(min(ratios) < 0.5 or p99 >= 20)


async def _compared(local: DeadLetterQueue, remote: DeadLetterQueue, letters: int, rounds: int, tasks: int) -> float:
    rates: dict[str, list[float]] = {"local": [], "remote": []}
    for number in range(rounds + 1):
        for kind, queue in (("local", local), ("remote", remote)):
            rate = await in_batches(queue, letters, tasks)
            if number:  # the first round warms up
                rates[kind].append(rate)
    ratios = [mine / theirs for mine, theirs in zip(rates["remote"], rates["local"], strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"batches of {BATCH}, {tasks} at a time: remote {statistics.median(rates['remote']):,.0f} letters/s, "
        f"in process {statistics.median(rates['local']):,.0f}; "
        f"ratio {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}), asked for: 0.5"
    )
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=8000, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=500, help="single captures a second")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    sys.exit(runner(main(options.letters, options.rounds, options.rate, options.seconds)))
