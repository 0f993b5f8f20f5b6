"""A process of the benchmark, seen from inside: ``python -m uno.event_bus.dead_letter.bench.process producer|worker``.

It reads its plan, one line, from standard input, and writes messages, one a line, to standard output: that it is
ready, how far it is, and at the end all that it has seen. When its input ends it ends, too, so it never outlives the
benchmark.
"""

import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator
from functools import partial
from importlib.util import find_spec
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from uno.event_bus.dead_letter.bench.errors import first_of_ours
from uno.event_bus.dead_letter.bench.messages import Failed, Message, written
from uno.event_bus.dead_letter.bench.plan import Plan
from uno.event_bus.dead_letter.bench.producer import Producer
from uno.event_bus.dead_letter.bench.worker import BenchWorker
from uno.event_bus.dead_letter.errors import DeadLetterError

STDOUT: Final = 1


def tell(message: Message) -> None:
    """Write a message, whole, before returning."""
    line = written(message)
    while line:
        line = line[os.write(STDOUT, line) :]


async def words() -> AsyncIterator[bytes]:
    """Yield the lines of standard input, as they come."""
    while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True):
        yield line


async def work(role: str, plan: Plan) -> None:
    """Do the part, and tell how it went."""
    try:
        match role:
            case "producer":
                tell(await Producer(plan, tell).run(words()))
            case _:
                tell(await BenchWorker(plan, tell).run(words()))
    except* DeadLetterError as group:
        error = first_of_ours(group)
        tell(Failed(getattr(error, "code", "failure"), str(error)))


def main() -> None:
    """Read the plan, do the part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then ends this process
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    uvloop = find_spec("uvloop") is not None
    status = 0
    try:
        anyio.run(partial(work, sys.argv[1], plan), backend_options={"use_uvloop": uvloop})
    except BaseException:
        traceback.print_exc()
        status = 1
    # A thread may still wait for standard input, and would keep the interpreter from ending.
    os._exit(status)


if __name__ == "__main__":
    main()
