"""The reclaimer of one shard: takes letters back from workers that died."""

import logging
from collections.abc import Callable
from time import monotonic

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.letter import DeadLetterReason
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.worker.session import Clock, Session

__all__ = ["Reclaimer"]

logger = logging.getLogger(__name__)

NEVER_MS = 10**15
"""A lease that nothing is older than: the call then only keeps in touch."""


class Reclaimer:
    """Walks all leases of the shard each tick, and takes back those that ran out.

    It acts only after it has been in touch with the shard for one lease without a gap: after an outage of
    Redis, or a pause of this process, leases look old that nobody had a chance to renew. For that it calls at the
    shards of others, too, if more seldom, and so takes back there as well: where workers die one after the other,
    those that serve a shard may all be too young.
    """

    def __init__(self, session: Session, shard: Shard, suspect_seen: Callable[[], None]) -> None:
        self._session = session
        self._shard = shard
        self._suspect_seen = suspect_seen
        self._trouble = session.outages.of(f"shard {shard.tag}")
        self._clock = Clock()
        """Of this shard's node: those of others may go wrong by more than a call may be late."""
        self._lead_ms = 0
        self._cursor = b"0-0"
        self._in_touch_since = monotonic()
        self._touched_at = monotonic()

    async def run(self) -> None:
        """Reclaim until cancelled."""
        while True:
            try:
                await self._tick()
            except DeadLetterError as error:
                self._in_touch_since = monotonic()
                self._trouble.failed("cannot take letters back from dead workers", error)
            else:
                self._trouble.over()
            await anyio.sleep(self._session.tick_s if self._is_served else self._session.lease_s / 3)

    @property
    def _is_served(self) -> bool:
        return self._shard.index in self._session.served

    def _is_trusted(self) -> bool:
        now = monotonic()
        if now - self._touched_at > self._session.lease_s / 2 + self._session.tick_s:
            self._in_touch_since = now
        return now - self._in_touch_since >= self._session.lease_s

    async def _tick(self) -> None:
        while True:
            reclaimed = await self._shard.reclaim(
                self._cursor,
                lease_ms=self._session.store.layout.lease_ms if self._is_trusted() else NEVER_MS,
                max_crashes=self._session.config.max_crashes,
                until_ms=self._clock.now_ms() + int(self._session.tick_s * 1000),
            )
            self._clock.heard(reclaimed.now_ms)
            self._session.clock.heard(reclaimed.now_ms)
            self._notice_clock(reclaimed.lead_ms)
            self._is_trusted()  # a reply that took long is a gap as well
            self._cursor, self._touched_at = reclaimed.cursor, monotonic()
            if reclaimed.suspects or reclaimed.parked:
                letters = len(reclaimed.suspects) + len(reclaimed.parked)
                self._session.recorder.reclaimed(self._session.config.queue, letters)
            if reclaimed.suspects:
                logger.warning(
                    "shard %s: %d leases ran out; the letters will run alone", self._shard.tag, len(reclaimed.suspects)
                )
                if self._is_served:
                    self._suspect_seen()
            for letter_id in reclaimed.parked:
                await self._tell_parked(letter_id)
            if self._cursor == b"0-0":
                return

    def _notice_clock(self, lead_ms: int) -> None:
        if lead_ms > self._lead_ms + 1000:
            logger.warning(
                "shard %s: the clock of its server was set back, and is %.0f s behind the shard's own time, by which "
                "letters stay due; the shard gives the lead back, an eighth of the time that passes",
                self._shard.tag,
                lead_ms / 1000,
            )
        self._lead_ms = lead_ms

    async def _tell_parked(self, letter_id: str) -> None:
        logger.error(
            "letter %s is parked: its worker died or stalled too often (STALLED)",
            letter_id,
            extra={"letter_id": letter_id},
        )
        letter = await browse.find(self._shard, letter_id)
        if letter is not None:
            self._session.parked(letter, DeadLetterReason.STALLED.value)
