"""The isolator: runs suspects, letters on which a lease ran out, one at a time and alone.

A letter that kills its process must not take its neighbours along: whoever was leased with it is a suspect too,
and each of them gets the whole worker for itself.
"""

from collections.abc import Sequence
from time import monotonic

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.taker import Taker

__all__ = ["Isolator"]

TURN_S = 1.0
"""How long suspects are run one after another before the others get a turn."""


class Isolator:
    """Waits until the worker is empty, or empties it when a suspect has been due for longer than a lease."""

    def __init__(self, session: Session, takers: Sequence[Taker]) -> None:
        self._session = session
        self._takers = takers
        self._trouble = session.outages.of("isolator")
        self._patience = 1
        """Leases that the worker gets to become empty: twice as many after each vain try."""

    def has_due(self) -> bool:
        """Whether a suspect is due on any shard, as far as the last replies tell, and could be run here."""
        if self._session.is_stuck:
            return False
        now_ms = self._session.clock.now_ms()
        return any(taker.suspect_due_ms is not None and taker.suspect_due_ms <= now_ms for taker in self._takers)

    async def run(self) -> None:
        """Run suspects until cancelled."""
        while not self._session.holdings.is_shut:
            await anyio.sleep(self._session.tick_s / 2)
            if not self.has_due():
                self._patience = 1
            elif self._session.holdings.is_empty or self._is_overdue():
                # For a lease at first: behind slow handlers others may run the suspect meanwhile, and this worker would
                # stand still for nothing.
                within_s = self._patience * self._session.lease_s
                async with self._session.holdings.alone(within_s=within_s) as is_alone:
                    if is_alone:
                        await self._take_turn()
                self._patience = 1 if is_alone else 2 * self._patience

    def _is_overdue(self) -> bool:
        lease_ms = self._session.store.layout.lease_ms
        now_ms = self._session.clock.now_ms()
        due = [taker.suspect_due_ms for taker in self._takers if taker.suspect_due_ms is not None]
        return any(now_ms - due_ms > lease_ms for due_ms in due)

    async def _take_turn(self) -> None:
        ends = monotonic() + TURN_S
        for taker in self._takers:
            while self._may_take(taker) and monotonic() < ends:
                try:
                    ran = await taker.take_alone()
                except DeadLetterError as error:
                    self._trouble.failed("cannot take a suspect", error)
                    return
                self._trouble.over()
                if not ran:
                    break
                await self._session.holdings.emptied()

    def _may_take(self, taker: Taker) -> bool:
        may_run = taker.suspect_due_ms is not None and self._session.can_run(taker.shard.index)
        return may_run and not self._session.holdings.is_shut
