"""Finding the application's queue with its handlers: `--app`, else ``DLQ_APP``, else the one entry point."""

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from uno.cli.failures import Failure, Status

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue

__all__ = ["load_queue"]

GROUP: Final = "uno.dead_letter"

THREE_WAYS: Final = (
    f"name a queue with --app module:queue, or in DLQ_APP, or install one package with an entry point of group {GROUP}"
)


def load_queue(app: str | None, *, redis_url: str | None = None, queue: str | None = None) -> "DeadLetterQueue":
    """Return the application's queue; nothing is sent to Redis.

    `redis_url` and `queue` go into the environment before the module is imported, so an application that
    uses `from_env` follows them; one that sets its own and differs is refused, because two answers to "which
    queue" would take somebody else's letters.

    Raises `Failure` with status 2, also for what the module itself raises.
    """
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

    for variable, value in (("DLQ_REDIS_URL", redis_url), ("DLQ_QUEUE", queue)):
        if value is not None:
            os.environ[variable] = value
    if redis_url is not None:
        os.environ.pop("DLQ_SERVICE_URL", None)  # it would go before
    config = DeadLetterConfig.from_env(app=app)
    where = config.app or _entry_point()
    found = _resolve(where)
    if not isinstance(found, DeadLetterQueue) and callable(found):
        found = _called(found, where)
    if not isinstance(found, DeadLetterQueue):
        kind = type(found).__qualname__
        raise Failure(f"{where} is a {kind}; wanted is a DeadLetterQueue, or a function that returns one", Status.USAGE)
    _check(found, where, config, redis_url, queue)
    return found


def _entry_point() -> str:
    from importlib.metadata import entry_points

    found = {point.value for point in entry_points(group=GROUP)}
    if len(found) == 1:
        return found.pop()
    what = f"{len(found)} entry points have handlers ({', '.join(sorted(found))})" if found else "no handlers are known"
    raise Failure(f"{what}: {THREE_WAYS}", Status.USAGE, "no_handlers")


def _resolve(where: str) -> Any:
    module, _, path = where.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as uvicorn and gunicorn do
    try:
        found: Any = import_module(module)
    except Exception as error:  # the application's code: anything may be wrong with it
        raise _failed(f"cannot import {module}", error) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise Failure(f"{module} has no {path!r}: {THREE_WAYS}", Status.USAGE)
        found = getattr(found, name)
    return found


def _called(function: Any, where: str) -> Any:
    try:
        return function()
    except Exception as error:  # as above
        raise _failed(f"{where}() failed", error) from error


def _failed(what: str, error: Exception) -> Failure:
    trace = "".join(traceback.format_exception(error))
    line = f"{what}: {type(error).__name__}: {error} (--debug shows where)"
    return Failure(line, Status.USAGE, "app_invalid", detail=trace)


def _check(found: "DeadLetterQueue", where: str, config: Any, redis_url: str | None, queue: str | None) -> None:
    if queue is not None and found.config.queue != queue:
        raise Failure(f"{where} is queue {found.config.queue!r}, --queue is {queue!r}: drop one of them", Status.USAGE)
    if redis_url is not None and found.config.redis_url != redis_url:
        raise Failure(f"{where} brings its own Redis: leave --redis-url out", Status.USAGE)
    if found.is_remote:
        why = "handlers need Redis itself: set DLQ_REDIS_URL, and no DLQ_SERVICE_URL"
        raise Failure(f"{where} is remote, behind a service; {why}", Status.USAGE)
    if not found.handlers:
        raise Failure(f"{where} has no handlers, so nothing was taken: {THREE_WAYS}", Status.USAGE, "no_handlers")
