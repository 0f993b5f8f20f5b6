"""Producers and workers, seen from outside: started, listened to, told what to do, and ended."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

import anyio
from anyio.abc import TaskStatus
from msgspec.structs import replace

from uno.event_bus.dead_letter.bench.errors import BenchFailed
from uno.event_bus.dead_letter.bench.messages import MESSAGES, Failed, Produced, Progress, Ready, Worked, written
from uno.event_bus.dead_letter.bench.plan import Plan
from uno.event_bus.dead_letter.rig.child import Child, child_process

__all__ = ["Participant", "at_work"]

MODULE: Final = "uno.event_bus.dead_letter.bench.process"

type Role = Literal["producer", "worker"]


class Participant:
    """A producer or a worker: a process of its own, `process.py`."""

    def __init__(self, role: Role, plan: Plan) -> None:
        self.acknowledged = 0
        """Of a producer: its letters so far."""
        self.produced: Produced | None = None
        self.worked: Worked | None = None
        self.ended = anyio.Event()
        self._role = role
        self._plan = plan
        self._child: Child | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Have the process until it has ended; ``task_status`` hears when it is ready.

        Raises `BenchFailed` when it cannot go on, or ends without having told what it saw.
        """
        async with child_process(MODULE, self._role) as child:
            self._child = child
            await child.tell(written(self._plan))
            async for line in child.lines():
                message = MESSAGES.decode(line)
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
            await child.wait()
            if self.produced is None and self.worked is None:
                raise BenchFailed(f"a {self._role} (pid {child.pid}) has ended early: {child.last_words()}")
        self.ended.set()

    async def tell(self, word: bytes) -> None:
        """Write a line to it."""
        if self._child is not None:
            await self._child.tell(word)

    async def end_input(self) -> None:
        """Ask it to end in order."""
        if self._child is not None:
            await self._child.end_input()


@asynccontextmanager
async def at_work(plan: Plan, *, workers: int) -> AsyncGenerator[tuple[Sequence[Participant], Sequence[Participant]]]:
    """Have producers and workers, all of them ready, for the body; after it they have ended, however it went."""
    producers = [Participant("producer", replace(plan, number=number)) for number in range(plan.producers)]
    working = [Participant("worker", replace(plan, number=number)) for number in range(workers)]
    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as starting:
            for participant in (*producers, *working):
                starting.start_soon(group.start, participant.run)
        yield producers, working
        group.cancel_scope.cancel()
