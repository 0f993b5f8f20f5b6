"""An attacker in a process of its own: ``python -m tests.support.harness.attacker '{…}'``.

Each attack once, several at a time; or with ``storm`` seconds for so long again and again, and a slowloris beside, from
the moment on when the file ``wait_for`` is in its folder. What each request came to is an ``attack`` line of its
history: which, when it was begun, the outcome.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from tests.support.harness.attacks import ATTACKS, Target, request
from tests.support.harness.history import Journal
from tests.support.harness.payloads import PAYLOADS, event_of
from tests.support.raw_http import ask

LANES = 8
CROWD = "idle connections"
STORM_PAUSE_S = 0.01
"""Between two attacks of a lane: it is the service that is to be busy."""


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
        if self._storm_s:
            await self._do(self._again(time.monotonic() + self._storm_s), iter(["slowloris"] * 3))
        else:
            await self._capture()
            await self._do(self._once())
            await self._do(iter([CROWD]))  # by itself: who comes after the last place takes that of an idle one

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

    async def _do(self, names: Iterator[str], *beside: Iterator[str]) -> None:
        async with anyio.create_task_group() as lanes:
            for _ in range(LANES):
                lanes.start_soon(self._lane, names)
            for more in beside:
                lanes.start_soon(self._lane, more)

    def _once(self) -> Iterator[str]:
        names = sorted(ATTACKS.keys() - {"slowloris", CROWD})
        self._chance.shuffle(names)
        return iter(["slowloris", *names])

    def _again(self, until: float) -> Iterator[str]:
        names = [name for name in ATTACKS if name != "slowloris"]
        while time.monotonic() < until:
            yield self._chance.choice(names)

    async def _lane(self, names: Iterator[str]) -> None:
        for name in names:
            began = time.monotonic()
            outcomes = await ATTACKS[name](self._target)
            self._journal.write_all(
                self._journal.line("attack", name, asked_at=began, note=found) for found in outcomes
            )
            if self._storm_s:
                await anyio.sleep(STORM_PAUSE_S)


if __name__ == "__main__":
    anyio.run(Attacker(json.loads(sys.argv[1])).run)
