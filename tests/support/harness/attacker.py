"""An attacker in a process of its own: ``python -m tests.support.harness.attacker '{…}'``.

Each attack once, several at a time; or with ``storm`` seconds for so long again and again, with a slowloris and one who
may read beside, from the moment on when the file ``wait_for`` is in its folder. What each request came to is an
``attack`` line of its history: which, when it was begun, the outcome.
"""

import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio

from tests.support.harness.attack import Target, request
from tests.support.harness.attacks import ATTACKS, READS
from tests.support.harness.history import Journal
from tests.support.harness.payloads import PAYLOADS, event_of
from tests.support.raw_http import ask

LANES = 8
CROWD = "idle connections"
STORM_PAUSE_S = 0.01
"""Between two attacks of a lane: it is the service that is to be busy."""

READ_PAUSE_S = 0.4
"""Between two reads: a list of 2,000 letters is some 60 ms of work for Redis, who has the worker to serve."""


class Attacker:
    """Lanes of attacks."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._target = Target(settings["service"], settings["tokens"])
        self._journal = Journal(settings["folder"], settings["name"])
        self._chance = random.Random(f"{settings['seed']} {settings['name']}")
        self._storm_s: float = settings.get("storm", 0.0)
        self._go = Path(settings["folder"], settings.get("wait_for", ""))
        """What is waited for: a file."""

    async def run(self) -> None:
        """Do all of it."""
        self._journal.write("ready")
        while not self._go.exists():  # noqa: ASYNC110 - of another process
            await anyio.sleep(0.01)
        if not self._storm_s:
            await self._capture()
            await self._do(self._once())
            await self._do(iter([CROWD]))  # by itself: who comes after the last place takes that of an idle one
            return
        until = time.monotonic() + self._storm_s
        async with anyio.create_task_group() as group:
            group.start_soon(self._do, self._again(ATTACKS.keys() - {"slowloris"}, until), STORM_PAUSE_S)
            group.start_soon(self._lane, iter(["slowloris"] * 3))
            group.start_soon(self._lane, self._again(READS, until), READ_PAUSE_S)

    async def _capture(self) -> None:
        """Capture events of hostile payloads; those that are let in are letters as others are."""
        for name in PAYLOADS:
            event_id, content = event_of(name)
            began = time.monotonic()
            reply = await ask(self._target.url, request(self._target, "POST", "/v1/letters", "capture", content))
            if reply.status == 201:
                self._journal.write("invoke", event_id)
                self._journal.write("ok", event_id, reply.record["id"])
            else:
                found = [self._journal.line("attack", f"payload: {name}", asked_at=began, note=str(reply.status))]
                self._journal.write_all(found)

    async def _do(self, names: Iterator[str], pause_s: float = 0.0) -> None:
        async with anyio.create_task_group() as lanes:
            for _ in range(LANES):
                lanes.start_soon(self._lane, names, pause_s)

    def _once(self) -> Iterator[str]:
        names = sorted(ATTACKS.keys() - {"slowloris", CROWD})
        self._chance.shuffle(names)
        return iter(["slowloris", *names])

    def _again(self, names: Iterable[str], until: float) -> Iterator[str]:
        known = sorted(names)
        while time.monotonic() < until:
            yield self._chance.choice(known)

    async def _lane(self, names: Iterator[str], pause_s: float = 0.0) -> None:
        for name in names:
            began = time.monotonic()
            outcomes = await (ATTACKS | READS)[name](self._target)
            self._journal.write_all(
                self._journal.line("attack", name, asked_at=began, note=found) for found in outcomes
            )
            if pause_s:
                await anyio.sleep(pause_s)


if __name__ == "__main__":
    anyio.run(Attacker(json.loads(sys.argv[1])).run)
