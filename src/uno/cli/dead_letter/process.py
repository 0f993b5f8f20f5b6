"""What commands share that run by themselves until they are told to stop: settings, signals, tracing, metrics."""

import logging
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import click

from uno.cli.dead_letter.options import together

if TYPE_CHECKING:
    import anyio

    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
    from uno.event_bus.dead_letter.telemetry.condition import Condition
    from uno.event_bus.dead_letter.telemetry.registry import Exposed

__all__ = ["exposed", "heed_signals", "metrics_options", "of_process", "open_when_there", "trace"]

logger = logging.getLogger("uno.dead_letter.process")

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0

metrics_options = together(
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65_535),
        metavar="PORT",
        help="Serve /metrics, /livez and /readyz here, 0: on any free port; else DLQ_METRICS_PORT, else nowhere.",
    ),
    click.option(
        "--metrics-host",
        metavar="HOST",
        help="Address for that, 0.0.0.0 in a pod; else DLQ_METRICS_HOST, else 127.0.0.1.",
    ),
)


def of_process(given: "DeadLetterConfig", of_app: "DeadLetterConfig", options: set[str]) -> "DeadLetterConfig":
    """Return the application's settings with what options and variables say of the process, not of the queue."""
    from dataclasses import replace

    from uno.event_bus.dead_letter import DeadLetterConfig

    names = ("metrics_port", "metrics_host", "log_format", "log_level")
    # An empty variable counts as not set.
    of_variables = {name for name in names if os.environ.get(DeadLetterConfig.variable(name), "").strip()}
    said = {name: getattr(given, name) for name in names if name in options | of_variables}
    return replace(of_app, **{name: value for name, value in said.items() if value is not None})


def trace(queue: "DeadLetterQueue") -> Callable[[], None]:
    """Set up tracing by the OTEL_* variables, unless the application has done it; return what ends it."""
    from uno.event_bus.dead_letter.telemetry.sdk import tracing_from_env

    return (lambda: None) if queue.tracer_provider is not None else tracing_from_env()


@asynccontextmanager
async def exposed(
    queue: "DeadLetterQueue",
    settings: "DeadLetterConfig",
    *,
    live: "Callable[[], Condition]",
    ready: "Callable[[], Condition]",
    shown: "Exposed | None" = None,
) -> AsyncGenerator[None]:
    """Serve metrics and probes while the block runs, also while Redis is away, if there is a port for them.

    What is `shown` is made, unless it is there already: once a queue.
    """
    if settings.metrics_port is None:
        yield
        return
    from uno.event_bus.dead_letter.telemetry.exposition import Exposition
    from uno.event_bus.dead_letter.telemetry.registry import registry_for

    registry, snapshots = shown or registry_for(queue)
    exposition = Exposition(
        registry,
        host=settings.metrics_host,
        port=settings.metrics_port,
        refresh=snapshots.refresh,
        live=live,
        ready=ready,
    )
    async with exposition:
        logger.info("metrics at %s/metrics, probes at /livez and /readyz", exposition.url)
        yield


async def open_when_there(queue: "DeadLetterQueue", stop: "anyio.Event", waits: Callable[[str], None]) -> bool:
    """Open the queue, waiting for Redis as long as it takes: its container may start after ours.

    `waits` hears why. Returns False when it was told to stop before.
    """
    import anyio

    from uno.event_bus.dead_letter.errors import StoreUnavailable

    pause, waiting_for = FIRST_PAUSE_S, ""
    while not stop.is_set():
        try:
            await queue.open()
        except StoreUnavailable as error:
            waits(f"waiting for Redis: {error.why}")
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


async def heed_signals(stop: "anyio.Event") -> None:
    """Set `stop` at SIGTERM or SIGINT; at the second one end the process at once."""
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
