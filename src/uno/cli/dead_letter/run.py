"""`worker` and `demo`: what runs by itself until it is told to stop."""

import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import app_option, queue_options
from uno.cli.dead_letter.session import run_async

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
    from uno.event_bus.dead_letter.worker.vitals import Vitals

logger = logging.getLogger("uno.dead_letter.worker")

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


@click.command("worker", cls=Command)
@app_option
@queue_options
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Serve /metrics, /livez and /readyz here, 0: on any free port; else DLQ_METRICS_PORT, else nowhere.",
)
@click.option(
    "--metrics-host",
    metavar="HOST",
    help="Address for that, 0.0.0.0 in a pod; else DLQ_METRICS_HOST, else 127.0.0.1.",
)
def worker(
    app: str | None, redis_url: str | None, queue: str | None, metrics_port: int | None, metrics_host: str | None
) -> int:
    """Try letters again, with the handlers of an application, until told to stop.

    SIGTERM or SIGINT stops in order: nothing more is taken, running handlers may finish within
    DLQ_SHUTDOWN_GRACE seconds, the rest is given back. A second signal leaves at once; what was running then
    comes back when its lease runs out. Redis may be away, at the start as later: the worker waits for it.

    An application is module:queue: a module that can be imported, also from the current directory, and its
    DeadLetterQueue or a function that returns one. --redis-url and --queue are for applications that read
    them from the environment (DeadLetterQueue.from_env()); one with settings of its own is not overruled.

    It logs to stderr, in JSON unless that is a terminal (DLQ_LOG_FORMAT, DLQ_LOG_LEVEL).

    Examples:
      uno dead-letter worker --app shop.events:queue
      DLQ_APP=shop.events:queue DLQ_CONCURRENCY=50 uno dead-letter worker --metrics-port 9464
    """
    from uno.cli.dead_letter.app import load_queue
    from uno.cli.logs import log_to_stderr
    from uno.event_bus.dead_letter import DeadLetterConfig

    given = DeadLetterConfig.from_env(metrics_port=metrics_port, metrics_host=metrics_host)
    loaded = load_queue(app, redis_url=redis_url, queue=queue)
    options = {"metrics_port": metrics_port, "metrics_host": metrics_host}
    settings = _of_process(given, loaded.config, {name for name, value in options.items() if value is not None})
    log_to_stderr(settings.log_format, settings.log_level)
    end_tracing = _trace(loaded)
    try:
        run_async(partial(_work, loaded, settings))
    finally:
        end_tracing()
    return 0


def _of_process(given: "DeadLetterConfig", of_app: "DeadLetterConfig", options: set[str]) -> "DeadLetterConfig":
    """Return the application's settings with what options and variables say of the process, not of the queue."""
    from dataclasses import replace

    from uno.event_bus.dead_letter import DeadLetterConfig

    names = ("metrics_port", "metrics_host", "log_format", "log_level")
    # An empty variable counts as not set.
    of_variables = {name for name in names if os.environ.get(DeadLetterConfig.variable(name), "").strip()}
    said = {name: getattr(given, name) for name in names if name in options | of_variables}
    return replace(of_app, **{name: value for name, value in said.items() if value is not None})


def _trace(queue: "DeadLetterQueue") -> "Callable[[], None]":
    """Set up tracing by the OTEL_* variables, unless the application has done it; return what ends it."""
    from uno.event_bus.dead_letter.telemetry.sdk import tracing_from_env

    return (lambda: None) if queue.tracer_provider is not None else tracing_from_env()


async def _work(queue: "DeadLetterQueue", settings: "DeadLetterConfig") -> None:
    import anyio

    from uno.event_bus.dead_letter.worker.vitals import Vitals

    stop, vitals = anyio.Event(), Vitals(settings)
    async with anyio.create_task_group() as group, _exposed(queue, vitals, settings):
        group.start_soon(_heed_signals, stop)
        try:
            if await _open(queue, stop, vitals):
                await _run(queue, stop, vitals)
        finally:
            with anyio.CancelScope(shield=True):
                await queue.aclose()
        group.cancel_scope.cancel()


@asynccontextmanager
async def _exposed(queue: "DeadLetterQueue", vitals: "Vitals", settings: "DeadLetterConfig") -> AsyncGenerator[None]:
    """Serve metrics and probes while the block runs, also while Redis is away, if there is a port for them."""
    if settings.metrics_port is None:
        yield
        return
    import anyio

    from uno.event_bus.dead_letter.telemetry.exposition import Exposition
    from uno.event_bus.dead_letter.telemetry.registry import registry_for

    registry, snapshots = registry_for(queue)
    exposition = Exposition(
        registry,
        host=settings.metrics_host,
        port=settings.metrics_port,
        refresh=snapshots.refresh,
        live=vitals.live,
        ready=vitals.ready,
    )
    async with anyio.create_task_group() as group, exposition:
        group.start_soon(vitals.run)
        logger.info("metrics at %s/metrics, probes at /livez and /readyz", exposition.url)
        yield
        group.cancel_scope.cancel()


async def _run(queue: "DeadLetterQueue", stop: "anyio.Event", vitals: "Vitals") -> None:
    logger.info(
        "started: queue %s, %d handlers, concurrency %d, pid %d",
        queue.config.queue,
        len(queue.handlers),
        queue.config.concurrency,
        os.getpid(),
        extra={"queue": queue.config.queue},
    )
    logger.info("stopped: %s", await queue.run(stop=stop, vitals=vitals))


async def _open(queue: "DeadLetterQueue", stop: "anyio.Event", vitals: "Vitals") -> bool:
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
            vitals.waits(f"waiting for Redis: {error.why}")
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
