"""The second worker: a process of its own that shares the queue, and nothing else, with the first.

It writes an empty line when it is ready for its plan, reads that, one line, from standard input, and works until that
ends, so it never outlives the demo. Its notes go to standard output, one a line, each before the queue hears how the
attempt went.

When it has worked for `KILL_AT_S`, it kills itself at the worst moment: a handler has done its work, and the queue has
not heard of it. That letter, and whatever else the process holds, comes back when the leases run out.
"""

import os
import signal
import sys
from functools import partial
from time import monotonic
from typing import Final

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.demo.journal import Note, Outcome
from uno.event_bus.dead_letter.demo.plan import NOTES, PLANS, Plan, open_shop

STDOUT: Final = 1

KILL_AT_S: Final = 1.0


def write_and_die(begun_at: float, note: Note) -> None:
    """Write a note, whole, before returning; later than `KILL_AT_S` after ``begun_at``, do not return."""
    os.write(STDOUT, NOTES.encode(note) + b"\n")
    if note.outcome is Outcome.WORKED and monotonic() - begun_at > KILL_AT_S:
        os.kill(os.getpid(), signal.SIGKILL)


async def work(plan: Plan) -> None:
    """Work until standard input ends."""
    stop = anyio.Event()

    async def wait_for_the_end() -> None:
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        stop.set()

    dlq, _ = open_shop(plan, f"process {os.getpid()}", partial(write_and_die, monotonic()))
    async with dlq, anyio.create_task_group() as group:
        group.start_soon(wait_for_the_end)
        await dlq.run(stop=stop)
        group.cancel_scope.cancel()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which then ends this process's input
    os.write(STDOUT, b"\n")
    anyio.run(work, PLANS.decode(sys.stdin.buffer.readline()))
