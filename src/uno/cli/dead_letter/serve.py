"""`service`: the queue over HTTP, until it is told to stop."""

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import redis_options
from uno.cli.dead_letter.process import exposed, heed_signals, metrics_options, of_process, open_when_there, trace
from uno.cli.dead_letter.run import work
from uno.cli.dead_letter.session import run_async
from uno.cli.failures import Failure, Status

if TYPE_CHECKING:
    import anyio

    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
    from uno.event_bus.dead_letter.service.settings import ServiceSettings
    from uno.event_bus.dead_letter.telemetry.condition import Condition
    from uno.event_bus.dead_letter.worker.vitals import Vitals

logger = logging.getLogger("uno.dead_letter.service")

EXTRA: Final = ("httptools", "starlette", "uvicorn")


@click.command("service", cls=Command)
@click.option("--host", metavar="HOST", help="Address to listen at; else DLQ_SERVICE_HOST, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), metavar="PORT", help="Else DLQ_SERVICE_PORT, else 8000.")
@click.option("--tokens-file", metavar="FILE", help="Who may come in; else DLQ_SERVICE_TOKENS_FILE, else anyone.")
@click.option("--app", metavar="MODULE:QUEUE", help="With DLQ_WORKER_MODE=true: whose handlers run, as of `worker`.")
@metrics_options
@redis_options
def service(
    host: str | None,
    port: int | None,
    tokens_file: str | None,
    app: str | None,
    metrics_port: int | None,
    metrics_host: str | None,
    redis_url: str | None,
    queue: str | None,
) -> int:
    """Serve the queue over HTTP, until told to stop; as many processes as wanted serve one queue.

    What it offers is described at /docs, and for programs at /openapi.json. /healthz tells whether the process runs,
    /readyz whether its queue answers. Redis may be away, at the start as later: it is waited for, and /readyz says so.

    At an address that others reach it asks for tokens: see `uno dead-letter token`. The file is read anew when it
    changes. DLQ_SERVICE_CERT_FILE and DLQ_SERVICE_KEY_FILE make it https. With DLQ_WORKER_MODE=true the process
    runs a worker, too.

    SIGTERM or SIGINT stops in order: no more connections are taken, requests under way are answered within
    DLQ_SHUTDOWN_GRACE seconds, streams end. A second signal leaves at once.

    Examples:
      uno dead-letter service --redis-url redis://redis:6379/0
      uno dead-letter service --host 0.0.0.0 --tokens-file /run/secrets/dlq-tokens
    """
    _require_extra()
    from uno.cli.logs import log_to_stderr
    from uno.event_bus.dead_letter.service.settings import ServiceSettings

    settings = ServiceSettings.from_env(host=host, port=port, tokens_file=tokens_file)
    options = {"metrics_port": metrics_port, "metrics_host": metrics_host}
    served, config = _load(app, redis_url, queue, {name: value for name, value in options.items() if value is not None})
    log_to_stderr(config.log_format, config.log_level)
    end_tracing = trace(served)
    try:
        run_async(partial(_serve, served, settings, config))
    finally:
        end_tracing()
    return 0


def _require_extra() -> None:
    from importlib.util import find_spec

    if not all(find_spec(name) for name in EXTRA):
        raise Failure("the service is an extra: pip install 'uno-dead-letter[service]'", Status.USAGE)


def _load(
    app: str | None, redis_url: str | None, queue: str | None, options: dict[str, Any]
) -> "tuple[DeadLetterQueue, DeadLetterConfig]":
    """Return the queue, the application's if a worker is to run, and the settings of the process."""
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

    given = DeadLetterConfig.from_env(redis_url=redis_url, queue=queue, app=app, **options)
    if given.worker_mode:
        from uno.cli.dead_letter.app import load_queue

        loaded = load_queue(app, redis_url=redis_url, queue=queue)
        return loaded, of_process(given, loaded.config, set(options))
    if app is not None:
        raise Failure("--app says whose handlers run, but none do: set DLQ_WORKER_MODE=true", Status.USAGE)
    return DeadLetterQueue(given.require_redis_url(), given), given


async def _serve(queue: "DeadLetterQueue", settings: "ServiceSettings", config: "DeadLetterConfig") -> None:
    import anyio

    from uno.event_bus.dead_letter.service.app import make_app
    from uno.event_bus.dead_letter.service.server import Server
    from uno.event_bus.dead_letter.telemetry.registry import registry_for
    from uno.event_bus.dead_letter.worker.vitals import Vitals

    stop, vitals = anyio.Event(), Vitals(config)
    works, state = bool(queue.handlers), _State()
    shown = registry_for(queue)
    app = make_app(queue, stop=stop, exposed=shown, most_body_bytes=settings.max_body_bytes)
    ready = vitals.ready if works else state.ready
    async with anyio.create_task_group() as group, exposed(queue, config, live=vitals.live, ready=ready, shown=shown):
        group.start_soon(heed_signals, stop)
        group.start_soon(vitals.run)
        try:
            async with (
                anyio.create_task_group() as parts,
                Server(app, settings, grace_s=config.shutdown_grace) as server,
            ):
                logger.info(
                    "service at %s: queue %s, %s, pid %d",
                    server.url,
                    queue.config.queue,
                    "tokens are asked for" if settings.tokens_file else "no tokens are asked for",
                    os.getpid(),
                    extra={"queue": queue.config.queue},
                )
                # Beside the server, which stops while the worker does.
                parts.start_soon(_open, queue, stop, state, vitals if works else None)
                await stop.wait()
                logger.info("the service takes no more connections")
        finally:
            with anyio.CancelScope(shield=True):
                await queue.aclose()
        logger.info("the service has stopped")
        group.cancel_scope.cancel()


async def _open(queue: "DeadLetterQueue", stop: "anyio.Event", state: "_State", vitals: "Vitals | None") -> None:
    """Open the queue when Redis is there; then run the worker, if there is one."""

    def waits(why: str) -> None:
        state.why = why
        if vitals is not None:
            vitals.waits(why)

    if not await open_when_there(queue, stop, waits):
        return
    state.why = ""
    if vitals is not None:
        await work(queue, stop, vitals)


class _State:
    """Whether the process serves its queue, as the port of metrics tells; the service's ``/readyz`` asks the shards."""

    why = "the queue is not open yet"

    def ready(self) -> "Condition":
        """Tell it; asked from another thread."""
        from uno.event_bus.dead_letter.telemetry.condition import Condition

        return Condition(not self.why, self.why)
