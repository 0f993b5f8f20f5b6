"""The servers' clocks as one process knows them: letters become due by the clock of the node that has them."""

from contextlib import suppress
from time import monotonic
from typing import Final

import anyio

from uno.event_bus.dead_letter.bench.errors import BenchFailed
from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["ServerTime"]

ASK_EVERY_S: Final = 0.5
KEPT: Final = 20
"""Answers of a node that are remembered: the one that came quickest counts."""


class ServerTime:
    """How far each shard's server is ahead of this machine's monotonic clock.

    TIME is asked of each primary twice a second, on connections of its own. An answer lies somewhere between
    question and arrival, its middle is taken: the quickest of the last 20 is off by half of its round trip at most.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._answers: dict[str, list[tuple[float, float]]] = {}
        """Name of a node → round trip and how far it is ahead, seconds, the last answer last."""
        self._ahead_s: list[float] = []

    def now_s(self, shard: int, at_s: float) -> float:
        """Return Unix time by the clock of a shard's server at a moment of the monotonic clock."""
        return at_s + self._ahead_s[shard]

    async def begin(self) -> None:
        """Ask every primary, and raise `BenchFailed` when one does not tell: nothing could be said of its letters."""
        await self.ask()
        for shard in self._store.shards:
            name = shard.route.primary.target.name
            if name not in self._answers:
                raise BenchFailed(f"{name} does not tell its time: the benchmark needs the command TIME")

    async def ask(self) -> None:
        """Ask every primary once, and the map of the cluster; a node that does not answer is passed over."""
        topology = self._store.topology
        for node in topology.primaries:
            with suppress(Exception):  # away for now, and asked again soon
                asked_s = monotonic()
                seconds, micros = await node.send("TIME", lane="heartbeats")
                trip_s = monotonic() - asked_s
                answers = self._answers.setdefault(node.target.name, [])
                answers.append((trip_s, int(seconds) + int(micros) / 1e6 - asked_s - trip_s / 2))
                del answers[:-KEPT]
        ahead_s = []
        for place, shard in enumerate(self._store.shards):
            answers = self._answers.get(shard.route.primary.target.name, [])
            known = self._ahead_s[place] if self._ahead_s else 0.0
            ahead_s.append(min(answers)[1] if answers else known)
        self._ahead_s = ahead_s

    async def keep_asking(self) -> None:
        """Ask until cancelled."""
        while True:
            await anyio.sleep(ASK_EVERY_S)
            with suppress(DeadLetterError):
                await self._store.topology.refresh()
                await self.ask()
