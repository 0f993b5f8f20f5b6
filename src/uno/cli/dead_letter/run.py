"""`worker` and `demo`: what runs by itself until it is told to stop."""

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, override

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import app_option, queue_options
from uno.cli.dead_letter.session import run_async
from uno.cli.text import lines

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

    from uno.event_bus.dead_letter import DeadLetterQueue

logger = logging.getLogger("uno.dead_letter.worker")

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


@click.command("worker", cls=Command)
@app_option
@queue_options
def worker(app: str | None, redis_url: str | None, queue: str | None) -> int:
    """Try letters again, with the handlers of an application, until told to stop.

    SIGTERM or SIGINT stops in order: nothing more is taken, running handlers may finish within
    DLQ_SHUTDOWN_GRACE seconds, the rest is given back. A second signal leaves at once; what was running then
    comes back when its lease runs out. Redis may be away, at the start as later: the worker waits for it.

    An application is module:queue: a module that can be imported, also from the current directory, and its
    DeadLetterQueue or a function that returns one. --redis-url and --queue are for applications that read
    them from the environment (DeadLetterQueue.from_env()); one with settings of its own is not overruled.

    Examples:
      uno dead-letter worker --app shop.events:queue
      DLQ_APP=shop.events:queue DLQ_CONCURRENCY=50 uno dead-letter worker
    """
    from uno.cli.dead_letter.app import load_queue

    loaded = load_queue(app, redis_url=redis_url, queue=queue)
    _log_to_stderr()
    end_tracing = _trace(loaded)
    try:
        run_async(partial(_work, loaded))
    finally:
        end_tracing()
    return 0


def _trace(queue: "DeadLetterQueue") -> "Callable[[], None]":
    """Set up tracing by the OTEL_* variables, unless the application has done it; return what ends it."""
    from uno.event_bus.dead_letter.telemetry.sdk import tracing_from_env

    return (lambda: None) if queue.tracer_provider is not None else tracing_from_env()


async def _work(queue: "DeadLetterQueue") -> None:
    import anyio

    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_heed_signals, stop)
        try:
            if await _open(queue, stop):
                await _run(queue, stop)
        finally:
            with anyio.CancelScope(shield=True):
                await queue.aclose()
        group.cancel_scope.cancel()


async def _run(queue: "DeadLetterQueue", stop: "anyio.Event") -> None:
    logger.info(
        "started: queue %s, %d handlers, concurrency %d, pid %d",
        queue.config.queue,
        len(queue.handlers),
        queue.config.concurrency,
        os.getpid(),
    )
    logger.info("stopped: %s", await queue.run(stop=stop))


async def _open(queue: "DeadLetterQueue", stop: "anyio.Event") -> bool:
    """Open the queue, waiting for Redis as long as it takes: its container may start after ours.

    Returns False when it was told to stop before.
    """
    import anyio

    from uno.event_bus.dead_letter.errors import StoreUnavailable

    pause, waiting_for = FIRST_PAUSE_S, ""
    while not stop.is_set():
        try:
            await queue.open()
        except StoreUnavailable as error:
            if error.why != waiting_for:
                logger.warning("waiting for Redis: %s", error.why)
            waiting_for = error.why
        else:
            if waiting_for:
                logger.info("Redis is there")
            return True
        with anyio.move_on_after(pause):
            await stop.wait()
        pause = min(pause * 2, LONGEST_PAUSE_S)
    return False


async def _heed_signals(stop: "anyio.Event") -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if stop.is_set():
                logger.warning("%s again: leaving at once; what is running comes back when its lease runs out", name)
                logging.shutdown()
                os._exit(128 + number)
            logger.info("%s: stopping in order (again: at once)", name)
            stop.set()


# --- logs ------------------------------------------------------------------------------------------------


class _Plain(logging.Formatter):
    """One line an entry, in UTC, with nothing in it that a terminal would obey."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def _log_to_stderr() -> None:
    """Log to stderr, unless the application has set up logging of its own."""
    root = logging.getLogger()
    if root.handlers:
        return
    import time

    handler = logging.StreamHandler(sys.stderr)
    formatter = _Plain("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(logging.INFO)


# --- the demo --------------------------------------------------------------------------------------------


@click.command("demo", cls=Command)
@click.option(
    "--events",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your own events: NDJSON as `import` takes it, also gz.",
)
@click.option("--letters", default=500, show_default=True, type=click.IntRange(1), help="Events to make up.")
@click.option("--seed", default=1, show_default=True, help="Seed of what is made up, and of what fails.")
@click.option("--redis-url", metavar="URL", help="A server to use; without it, one of its own that goes away again.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def demo(events: Path | None, letters: int, seed: int, redis_url: str | None) -> int:
    """Show the main job: events fail, are kept, tried again, and every one is accounted for.

    Examples:
      uno dead-letter demo
      uno dead-letter demo --events webhooks.ndjson.gz
    """
    from uno.event_bus.dead_letter.demo import run_demo

    progress = sys.stderr.isatty() and sys.stdout.isatty()
    return run_async(partial(run_demo, url=redis_url, events=events, letters=letters, seed=seed, progress=progress))
