"""The sweeper of one shard: retention, repair, and the clean-up of consumers that are gone."""

import logging
import random

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.taker import Taker

__all__ = ["Sweeper"]

logger = logging.getLogger(__name__)

MS_PER_DAY = 86_400_000
FULL_PAGE = 100
"""Letters that `expire` removes in one call at most."""

PART_TICKS = 5
"""Ticks between two parts: a part of 500 letters costs the server some ms, and every worker asks for its own."""

IDLE_CONSUMER_LEASES = 20
"""A consumer with nothing pending is removed after this many leases of silence."""


class Sweeper:
    """Looks at a part of the shard every few ticks; at the whole of it at once when the consumer group was missing."""

    def __init__(self, session: Session, taker: Taker) -> None:
        self._session = session
        self._shard = taker.shard
        self._taker = taker
        self._trouble = session.outages.of(f"shard {taker.shard.tag}")
        self._cursor = b""
        self._whole = False
        """The whole shard is to be looked at, and the end has not been reached."""

    @property
    def is_behind(self) -> bool:
        """Whether letters may be in no state, because the consumer group was missing."""
        return self._whole or self._taker.group_was_missing.is_set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                if self._shard.index in self._session.served:
                    await self._repair()
                    await self._expire()
            except DeadLetterError as error:
                self._trouble.failed("cannot repair or expire letters", error)
            else:
                self._trouble.over()
            with anyio.move_on_after(PART_TICKS * self._session.tick_s * (0.5 + random.random())):
                await self._taker.group_was_missing.wait()

    async def _repair(self) -> None:
        if self._taker.group_was_missing.is_set():
            self._taker.group_was_missing = anyio.Event()
            self._cursor, self._whole = b"", True
        idle_ms = IDLE_CONSUMER_LEASES * self._session.store.layout.lease_ms
        while True:
            repaired = await self._shard.repair(self._cursor, idle_ms=idle_ms)
            self._cursor = repaired.cursor
            if repaired.orphaned:
                logger.warning(
                    "shard %s: %d letters were in no state; they are due now", self._shard.tag, len(repaired.orphaned)
                )
                self._taker.wake()
            if repaired.doubled or repaired.rows_removed:
                logger.warning(
                    "shard %s: %d letters were in two states, %d rows had no letter",
                    self._shard.tag,
                    len(repaired.doubled),
                    repaired.rows_removed,
                )
            if repaired.remade:  # no `take` has found it, so none tells
                self._cursor, self._whole = b"", True
            elif not self._cursor:
                self._whole = False
            if not self._whole:
                return

    async def _expire(self) -> None:
        retention_ms = int(self._session.config.retention_days * MS_PER_DAY)
        while retention_ms:
            expired = await self._shard.expire(retention_ms)
            if expired:
                logger.info("shard %s: %d parked letters expired", self._shard.tag, len(expired))
            if len(expired) < FULL_PAGE:
                return
