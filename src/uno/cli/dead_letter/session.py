"""Running async commands, and opening the queue they work on."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate

from uno.cli.dead_letter.options import queue_options

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue

__all__ = ["closing", "on_queue", "run_async", "with_queue"]


def run_async[T](function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function to its end, on uvloop where it is installed."""
    from importlib.util import find_spec

    import anyio

    return anyio.run(function, backend_options={"use_uvloop": find_spec("uvloop") is not None})


def with_queue[**P](
    command: "Callable[Concatenate[DeadLetterQueue, P], Awaitable[int | None]]",
    *,
    make: bool = False,
    opened: bool = True,
) -> Callable[..., int | None]:
    """Give a command the options of a queue, and run it with that queue, open, as its first argument.

    A queue that nobody has ever used is an error unless the command may `make` it: its name is misspelt. A command
    that wants it not `opened` does that itself.
    """

    @queue_options
    @wraps(command)
    def run(*, redis_url: str | None, queue: str | None, **options: Any) -> int | None:
        called: Callable[..., Awaitable[int | None]] = command
        act = partial(on_queue, lambda on: called(on, **options), redis_url, queue, make=make, opened=opened)
        return run_async(act)

    return run


async def on_queue[T](
    function: "Callable[[DeadLetterQueue], Awaitable[T]]",
    redis_url: str | None = None,
    queue: str | None = None,
    *,
    make: bool = False,
    opened: bool = True,
) -> T:
    """Call a function with the queue that the options name, or the variables where they name nothing."""
    from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, acting_as
    from uno.event_bus.dead_letter.actor import process_user

    config = DeadLetterConfig.from_env(redis_url=redis_url, queue=queue)
    async with closing(DeadLetterQueue(redis_url or config.require_url(), config), make=make, opened=opened) as named:
        with acting_as(f"cli:{process_user()}"):
            return await function(named)


@asynccontextmanager
async def closing(
    queue: "DeadLetterQueue", *, make: bool = False, opened: bool = True
) -> "AsyncGenerator[DeadLetterQueue]":
    """Open a queue, and close it at the end: also when it could not be opened, or work was cancelled."""
    import anyio

    try:
        if opened:
            await queue.open(make=make)
        yield queue
    finally:
        with anyio.CancelScope(shield=True):
            await queue.aclose()
