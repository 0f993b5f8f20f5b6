"""The second worker as the demo sees it: started, listened to, and dead before it is time."""

import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import Final

import anyio
import msgspec
from anyio.abc import Process, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from uno.event_bus.dead_letter.demo.journal import Note
from uno.event_bus.dead_letter.demo.plan import NOTES, Plan

__all__ = ["SecondWorker"]

LONGEST_LINE: Final = 1 << 20
ENDING_S: Final = 8.0
"""Patience with a worker that was asked to end, seconds; then it is killed."""

COMMAND: Final = [sys.executable, "-m", "uno.event_bus.dead_letter.demo.second_worker"]

_NOTES: Final = msgspec.json.Decoder(Note)


class SecondWorker:
    """A worker process of its own, which kills itself when it has worked for a while; see `second_worker`."""

    def __init__(self, note: Callable[[Note], None], say: Callable[[str], None]) -> None:
        self._note = note
        self._say = say
        self._process: Process | None = None

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
        with tempfile.TemporaryFile() as errors:
            # A session of its own: Ctrl-C reaches the demo alone, which ends its worker in order.
            async with await anyio.open_process(
                COMMAND, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True
            ) as it:
                self._process = it
                try:
                    await self._converse(it, task_status)
                except BaseException:
                    it.kill()
                    raise
                status = await it.wait()
            if status == -signal.SIGKILL:
                self._say(f"the second worker (pid {it.pid}) is dead: SIGKILL, just before it settled")
            elif status:
                errors.seek(0)
                why = (errors.read().decode("utf-8", "replace").splitlines() or ["no reason given"])[-1]
                self._say(f"the second worker has ended with status {status}: {why}")

    async def _converse(self, it: Process, task_status: TaskStatus[None]) -> None:
        assert it.stdout is not None
        lines = BufferedByteReceiveStream(it.stdout)
        try:
            await lines.receive_until(b"\n", LONGEST_LINE)
        except (anyio.IncompleteRead, anyio.EndOfStream):
            return  # it has ended; its status tells
        finally:
            task_status.started()
        await self._listen(lines)

    async def begin(self, plan: Plan) -> None:
        """Tell it what to work on."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(anyio.BrokenResourceError):  # it has ended; its status tells
            await self._process.stdin.send(NOTES.encode(plan) + b"\n")

    async def stop(self) -> None:
        """Ask it to end in order, and kill it if it does not."""
        it = self._process
        if it is None or it.returncode is not None or it.stdin is None:
            return
        await it.stdin.aclose()
        with anyio.move_on_after(ENDING_S):
            await it.wait()
            return
        it.kill()

    async def _listen(self, lines: BufferedByteReceiveStream) -> None:
        while True:
            try:
                note = _NOTES.decode(await lines.receive_until(b"\n", LONGEST_LINE))
            except (anyio.IncompleteRead, anyio.EndOfStream):
                return
            self._note(note)
