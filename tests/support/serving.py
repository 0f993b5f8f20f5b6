"""What the worker processes of tests share: they say when they are ready, and stop in order at SIGTERM."""

import os
import signal

import anyio

from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.worker.session import Report

__all__ = ["serve"]


async def serve(queue: DeadLetterQueue) -> Report:
    """Work until SIGTERM, and write ``ready`` to stdout when every shard has answered."""
    stop, ready = anyio.Event(), anyio.Event()

    async def obey() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                stop.set()

    async def announce() -> None:
        await ready.wait()
        os.write(1, b"ready\n")

    async with queue, anyio.create_task_group() as group:
        group.start_soon(obey)
        group.start_soon(announce)
        report = await queue.run(stop=stop, ready=ready)
        group.cancel_scope.cancel()
    return report
