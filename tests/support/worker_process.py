"""A worker in a process of its own: ``python -m tests.support.worker_process '{"url": …, "ledger": …, …}'``.

Its handler does what the event says, ``{"n": 7, "do": "ok", "ms": 3}``, and appends a line when it starts and
when it ends to a file of this process, before anything else: so a SIGKILL cannot hide a run.

``do``: ``ok``, ``fail once`` (on the first attempt), ``kill`` (SIGKILL of this very process), ``stop`` (SIGTERM),
``block once`` (the event loop, for ``ms``, until a lease ran out by it).
"""

import json
import os
import signal
import sys
import time
from typing import Any, NamedTuple

import anyio

from tests.support.serving import serve
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, Letter


class Line(NamedTuple):
    """One line of a ledger."""

    what: str
    """``start`` or ``end``."""
    n: int
    letter_id: str
    attempt: int
    crashes: int
    token: int
    pid: int
    at: float
    """CLOCK_MONOTONIC, which all processes share, seconds."""


async def main(settings: dict[str, Any]) -> None:
    queue = DeadLetterQueue(settings["url"], DeadLetterConfig(**settings["config"]))
    ledger = os.open(f"{settings['ledger']}/{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, event: dict[str, Any], letter: Letter) -> None:
        assert letter.lease is not None
        line = Line(
            what,
            event["n"],
            letter.id,
            letter.attempt,
            letter.counters.crashes,
            letter.lease.token,
            os.getpid(),
            time.monotonic(),
        )
        os.write(ledger, json.dumps(line).encode() + b"\n")

    @queue.handler()
    async def handle(event: dict[str, Any], letter: Letter) -> None:
        note("start", event, letter)
        match event["do"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            case "block once" if letter.counters.crashes == 0:
                time.sleep(event["ms"] / 1000)  # noqa: ASYNC251 - the fault
            case "fail once" if letter.attempt == 1:
                note("end", event, letter)
                raise ValueError("the first time")
        await anyio.sleep(event["ms"] / 1000)
        note("end", event, letter)

    os.write(1, f"{await serve(queue)}\n".encode())


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
