"""The processes of a benchmark, seen from outside: started, listened to, told what to do, and ended."""

import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from subprocess import PIPE
from typing import IO, Final, Literal

import anyio
import msgspec
from anyio.abc import Process, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec.structs import replace

from uno.event_bus.dead_letter.bench.failed import BenchFailed
from uno.event_bus.dead_letter.bench.plan import Failed, Message, Plan, Produced, Progress, Ready, Worked, written

__all__ = ["Helper", "at_work"]

LONGEST_LINE: Final = 64 << 20

type Role = Literal["producer", "worker"]

_MESSAGES: Final = msgspec.json.Decoder[Message](Message)


class Helper:
    """One process, `process.py`."""

    def __init__(self, role: Role, plan: Plan) -> None:
        self.role = role
        self.number = plan.number
        self.acknowledged = 0
        """Of a producer: its letters so far."""
        self.produced: Produced | None = None
        self.worked: Worked | None = None
        self.ended = anyio.Event()
        self._plan = plan
        self._process: Process | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Have the process until it has ended; ``task_status`` hears when it is ready.

        Raises `BenchFailed` when it ends without having told what it saw.
        """
        command = [sys.executable, "-m", "uno.event_bus.dead_letter.bench.process", self.role]
        with tempfile.TemporaryFile() as errors:
            # A session of its own: Ctrl-C reaches the benchmark alone, which ends its processes.
            async with await anyio.open_process(
                command, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True
            ) as it:
                self._process = it
                try:
                    await self.tell(written(self._plan))
                    await self._listen(it, task_status)
                    await it.wait()
                except BaseException:
                    it.kill()
                    raise
            if self.produced is None and self.worked is None:
                raise BenchFailed(f"a {self.role} (pid {it.pid}) has ended early: {_last_line(errors)}")
        self.ended.set()

    async def _listen(self, it: Process, task_status: TaskStatus[None]) -> None:
        assert it.stdout is not None
        lines = BufferedByteReceiveStream(it.stdout)
        while True:
            try:
                message = _MESSAGES.decode(await lines.receive_until(b"\n", LONGEST_LINE))
            except (anyio.IncompleteRead, anyio.EndOfStream):
                return
            match message:
                case Ready():
                    task_status.started()
                case Progress(acknowledged):
                    self.acknowledged = acknowledged
                case Failed(code, why):
                    raise BenchFailed(why, code)
                case Produced():
                    self.produced = message
                case Worked():
                    self.worked = message

    async def tell(self, word: bytes) -> None:
        """Write a line to it; one that has ended does not hear it, and its status tells."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._process.stdin.send(word)

    async def end_input(self) -> None:
        """Ask it to end in order."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(anyio.BrokenResourceError):
                await self._process.stdin.aclose()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    return (errors.read().decode("utf-8", "replace").splitlines() or ["no reason given"])[-1]


@asynccontextmanager
async def at_work(plan: Plan, *, workers: int) -> AsyncGenerator[tuple[Sequence[Helper], Sequence[Helper]]]:
    """Have producers and workers, all of them ready, for the body; after it they have ended, however it went."""
    producers = [Helper("producer", replace(plan, number=number)) for number in range(plan.producers)]
    working = [Helper("worker", replace(plan, number=number)) for number in range(workers)]
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as starting:
            for helper in (*producers, *working):
                starting.start_soon(group.start, helper.run)
        yield producers, working
        group.cancel_scope.cancel()
