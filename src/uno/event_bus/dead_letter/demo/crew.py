"""The second worker as the demo sees it: started, listened to, and dead before it is time."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from uno.event_bus.dead_letter.demo.journal import Note
from uno.event_bus.dead_letter.demo.plan import NOTES, Plan
from uno.event_bus.dead_letter.rig.child import Child, child_process

__all__ = ["SecondWorker"]

ENDING_S: Final = 8.0
"""Patience with a worker that was asked to end, seconds; then it is killed."""

MODULE: Final = "uno.event_bus.dead_letter.demo.second_worker"

_NOTES: Final = msgspec.json.Decoder(Note)


class SecondWorker:
    """A worker process of its own, which kills itself when it has worked for a while; see `second_worker`."""

    def __init__(self, note: Callable[[Note], None], say: Callable[[str], None]) -> None:
        self._note = note
        self._say = say
        self._child: Child | None = None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Have the process for as long as the body runs; it waits for `begin`."""
        async with anyio.create_task_group() as group:
            await group.start(self._run)
            yield
            await self.stop()

    async def _run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start the process, pass on its notes, and return when it has ended, however it ended.

        ``task_status`` hears when it is ready, or will never be.
        """
        async with child_process(MODULE) as child:
            self._child = child
            lines = child.lines()
            try:
                await anext(lines, None)
            finally:
                task_status.started()
            async for line in lines:
                self._note(_NOTES.decode(line))
            status = await child.wait()
            if status == -signal.SIGKILL:
                self._say(f"the second worker (pid {child.pid}) is dead: SIGKILL, just before it settled")
            elif status:
                self._say(f"the second worker has ended early: {child.last_words()}")

    async def begin(self, plan: Plan) -> None:
        """Tell it what to work on."""
        assert self._child is not None
        await self._child.tell(NOTES.encode(plan) + b"\n")

    async def stop(self) -> None:
        """Ask it to end in order, and kill it if it does not."""
        assert self._child is not None
        await self._child.end_input()
        with anyio.move_on_after(ENDING_S):
            await self._child.wait()
            return
        self._child.kill()
