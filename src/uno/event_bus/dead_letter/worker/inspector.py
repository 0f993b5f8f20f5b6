"""The inspector: looks whether the servers may throw letters away, for as long as the worker runs.

A queue does not open without a look at that, but whoever sets ``maxmemory-policy`` later tells nobody. The worker goes
on: letters that it brings to their end can no longer be evicted.
"""

import logging
from typing import Final

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.store.server import eviction_warning, read_facts
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Inspector"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 10.0


class Inspector:
    """Says when a server's policy begins to allow evictions, and when that is over; records how many there are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._evicting: set[str] | None = None
        """Servers that may evict; None before the first look, since opening the queue has said what that finds."""

    async def run(self) -> None:
        """Look every 10 s until cancelled."""
        while True:
            await self._look()
            await anyio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        known = self._evicting or set()
        evicting = set()
        for node in self._session.store.topology.primaries:
            name = node.target.name
            try:
                facts = await read_facts(node)
            except DeadLetterError:  # it is away: what was known of it holds
                evicting |= known & {name}
                continue
            if facts.may_evict:
                evicting.add(name)
                if self._evicting is not None and name not in known:
                    logger.error("%s", eviction_warning(facts, node))
        for name in sorted(known - evicting):
            logger.info("%s evicts no letters any more", name)
        self._evicting = evicting
        self._session.recorder.evicting_servers(self._session.config.queue, len(evicting))
