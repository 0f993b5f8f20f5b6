"""`worker` and `demo`: what runs by itself until it is told to stop."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import app_option, redis_options
from uno.cli.dead_letter.process import exposed, heed_signals, metrics_options, of_process, open_when_there, trace
from uno.cli.dead_letter.session import run_async

if TYPE_CHECKING:
    import anyio

    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
    from uno.event_bus.dead_letter.worker.vitals import Vitals

logger = logging.getLogger("uno.dead_letter.worker")


@click.command("worker", cls=Command)
@app_option
@redis_options
@metrics_options
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
    settings = of_process(given, loaded.config, {name for name, value in options.items() if value is not None})
    log_to_stderr(settings.log_format, settings.log_level)
    end_tracing = trace(loaded)
    try:
        run_async(partial(_work, loaded, settings))
    finally:
        end_tracing()
    return 0


async def _work(queue: "DeadLetterQueue", settings: "DeadLetterConfig") -> None:
    import anyio

    from uno.event_bus.dead_letter.worker.vitals import Vitals

    stop, vitals = anyio.Event(), Vitals(settings)
    async with anyio.create_task_group() as group, exposed(queue, settings, live=vitals.live, ready=vitals.ready):
        group.start_soon(heed_signals, stop)
        if settings.metrics_port is not None:
            group.start_soon(vitals.run)
        try:
            if await open_when_there(queue, stop, vitals.waits):
                await work(queue, stop, vitals)
        finally:
            with anyio.CancelScope(shield=True):
                await queue.aclose()
        group.cancel_scope.cancel()


async def work(queue: "DeadLetterQueue", stop: "anyio.Event", vitals: "Vitals") -> None:
    """Run the worker until it is told to stop."""
    logger.info(
        "started: queue %s, %d handlers, concurrency %d, pid %d",
        queue.config.queue,
        len(queue.handlers),
        queue.config.concurrency,
        os.getpid(),
        extra={"queue": queue.config.queue},
    )
    logger.info("stopped: %s", await queue.run(stop=stop, vitals=vitals))


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
