"""A worker in a process of its own: ``python -m tests.support.harness.worker '{…}'``.

Its handler does what the event says and writes down when it starts and ends; what the engine takes and settles is
written down, too, before it is sent and after it was answered. ``do``: ``ok``, ``fail once``, ``raise`` (always),
``later`` (captured with a delay),
``hang`` (its handler has a timeout), ``kill``, ``exit``, ``allocate`` (more than the process may have), ``block once``.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any
from unittest import mock

import anyio

from tests.support.harness.history import Journal
from tests.support.harness.source import queue_of
from uno.event_bus.dead_letter import Letter
from uno.event_bus.dead_letter.store.node import Node
from uno.event_bus.dead_letter.store.scripts import Script
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome, Taken, Verdict

MEMORY_BYTES = 2 << 30
HANG_TIMEOUT_S = 0.3
_take, _settle, _run = Shard.take, Shard.settle, Node.run
_sent: ContextVar[list[str]] = ContextVar("_sent")
"""Scripts that one call of a shard has sent so far: it repeats those whose reply was lost."""


class Handler:
    """Does what events say."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def handle(self, event: dict[str, Any], letter: Letter) -> None:
        assert letter.lease is not None
        facts = (event["id"], letter.id, letter.lease.token)
        self._journal.write("start", *facts, note=f"attempt {letter.attempt} crashes {letter.counters.crashes}")
        try:
            await self._do(event, letter)
        except Exception:
            self._journal.write("end", *facts, note="failed")
            raise
        except BaseException:
            self._journal.write("end", *facts, note="cancelled")
            raise
        self._journal.write("end", *facts, note="ok")

    async def _do(self, event: dict[str, Any], letter: Letter) -> None:
        match event["do"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                sys.exit(3)
            case "allocate":
                bytearray(MEMORY_BYTES)
            case "hang":
                with anyio.fail_after(HANG_TIMEOUT_S):
                    await anyio.sleep_forever()
            case "block once" if letter.counters.crashes == 0:
                time.sleep(event["ms"] / 1000)  # noqa: ASYNC251 - the fault
            case "raise":
                raise ValueError("always")
            case "fail once" if letter.attempt == 1:
                raise ValueError("the first time")
        if event["do"] not in ("block once", "later"):
            await anyio.sleep(event["ms"] / 1000)


def written_down(journal: Journal) -> tuple[Any, Any]:
    """`Shard.take` and `Shard.settle`, which write down what they do."""

    async def take(shard: Shard, consumer: str, count: int, **how: Any) -> Taken:
        asked_at = time.monotonic()
        taken = await _take(shard, consumer, count, **how)
        journal.write_all(
            journal.line("take", "", letter.id, letter.lease.token if letter.lease else 0, asked_at)
            for letter in taken.letters
        )
        return taken

    async def settle(shard: Shard, consumer: str, outcomes: Sequence[Outcome]) -> list[Verdict]:
        asked_at = time.monotonic()
        journal.write_all(journal.line("settling", "", o.letter_id, o.token, asked_at, str(o.verb)) for o in outcomes)
        sent: list[str] = []
        _sent.set(sent)
        verdicts = await _settle(shard, consumer, outcomes)
        for _ in sent[1:]:  # a repeat may be refused because of the first, so it counts as a try of its own
            journal.write_all(
                journal.line("settling", "", o.letter_id, o.token, asked_at, str(o.verb)) for o in outcomes
            )
        journal.write_all(
            journal.line("settled", "", o.letter_id, o.token, asked_at, f"{o.verb} {verdict}")
            for o, verdict in zip(outcomes, verdicts, strict=True)
        )
        return verdicts

    return take, settle


async def run(node: Node, by_sha: bytes, script: Script, *rest: Any) -> Any:
    """`Node.run`, which notes that it is called."""
    _sent.get([]).append(script.name)
    return await _run(node, by_sha, script, *rest)


async def main(settings: dict[str, Any]) -> None:
    if settings.get("memory_bytes"):
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"], settings["memory_bytes"]))
    journal = Journal(settings["folder"], settings["name"])
    queue = queue_of(settings)
    queue.add_handler(Handler(journal).handle)
    stop, ready = anyio.Event(), anyio.Event()

    async def obey() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                stop.set()

    async def announce() -> None:
        await ready.wait()
        journal.write("ready")

    take, settle = written_down(journal)
    patches = ((Shard, "take", take), (Shard, "settle", settle), (Node, "run", run))
    with ExitStack() as patched:
        for patch in patches:
            patched.enter_context(mock.patch.object(*patch))
        async with queue, anyio.create_task_group() as group:
            group.start_soon(obey)
            group.start_soon(announce)
            chance = random.Random(f"{settings['seed']} {settings['name']}")
            while not stop.is_set():
                # With `cancels` it is cancelled at random moments, and starts again.
                patience_s = chance.random() * settings["cancels"] if settings.get("cancels") else None
                with anyio.move_on_after(patience_s):
                    report = await queue.run(stop=stop, ready=ready)
                    journal.write("said", note=str(report))
            group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
