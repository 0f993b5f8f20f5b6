"""The watchdog: says aloud when a worker looks healthy and does nothing."""

import logging
from collections.abc import Sequence
from time import monotonic

import anyio

from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.taker import Taker

__all__ = ["Watchdog"]

logger = logging.getLogger(__name__)

STALLED_AFTER_S = 10.0
"""A shard is stalled when it has not answered for this long although there is room for its letters."""


class Watchdog:
    """Watches that every shard answers, and that no handler blocks the event loop."""

    def __init__(self, session: Session, takers: Sequence[Taker]) -> None:
        self._session = session
        self._takers = takers
        self._reported: set[int] = set()

    def stalled(self) -> list[int]:
        """Return the positions of takers that make no progress."""
        if self._session.is_stuck or not self._session.holdings.has_room:
            return []  # a worker without a place does not ask: its heartbeats tell whether it lives
        now = monotonic()
        return [
            i
            for i, taker in enumerate(self._takers)
            if taker.shard.index in self._session.served and now - taker.replied_at > STALLED_AFTER_S
        ]

    async def run(self) -> None:
        """Watch until cancelled."""
        tick_s = self._session.tick_s
        while True:
            before = monotonic()
            await anyio.sleep(tick_s)
            lag_s = monotonic() - before - tick_s
            if lag_s > self._session.lease_s / 3:
                logger.error(
                    "the event loop was blocked for %.1f s, leases last %.1f s: a handler that blocks must be a "
                    "plain function (it runs in a thread), not async",
                    lag_s,
                    self._session.lease_s,
                )
            stalled = set(self.stalled())
            for position in stalled - self._reported:
                fields = {"shard": position}
                logger.error("shard %d has not answered for %.0f s", position, STALLED_AFTER_S, extra=fields)
            for position in self._reported - stalled:
                logger.info("shard %d answers again", position, extra={"shard": position})
            self._reported = stalled
