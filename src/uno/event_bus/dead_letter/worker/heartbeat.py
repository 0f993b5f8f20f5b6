"""The heartbeat of one shard: keeps the leases of this worker, and gives up those that are lost."""

import logging
from collections.abc import Collection
from time import monotonic

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Extended, Outcome
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats at a third of a lease, and four times as often while Redis is away.

    A lease that could not be renewed is given up a sixth of its length before it ends, so that this worker's
    handler is gone before another worker's begins.
    """

    def __init__(self, session: Session, shard: Shard) -> None:
        self._session = session
        self._shard = shard
        self._trouble = session.outages.of(f"shard {shard.tag}")
        self._forgotten: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            lease_s = self._session.lease_s
            beaten = await self._beat()
            self._give_up_late()
            await anyio.sleep(lease_s / 3 if beaten else lease_s / 12)

    async def _beat(self) -> bool:
        asked_at = monotonic()
        leases = {held.letter.id: held for held in self._session.holdings.all() if held.shard is self._shard}
        pairs = [(id, held.lease.token) for id, held in leases.items()]
        failure: DeadLetterError | str = "no answer to a heartbeat"
        extended: Extended | None = None
        try:
            with anyio.move_on_after(self._patience_s(leases.values())):
                extended = await self._shard.extend(self._session.consumer, pairs)
        except DeadLetterError as error:
            failure = error
        if extended is None:
            self._trouble.failed(f"{len(pairs)} leases were not renewed", failure)
            return False
        self._trouble.over()
        self._session.beaten_at[self._shard.index] = asked_at
        self._renew(leases, set(extended.lost), asked_at)
        await self._release_forgotten(extended)
        return True

    def _patience_s(self, leases: Collection[Held]) -> float:
        """Return how long to wait for an answer: a third of a lease, and not past the moment to give one up.

        With nothing to lose, a whole lease: over a slow network a connection takes several round trips to be made, and
        one that is given up before it stands is never made.
        """
        lease_s = self._session.lease_s
        if not leases:
            return lease_s
        ends = [held.lease.expires_at for held in leases if not held.handled]
        return min([lease_s / 3, *(max(0.0, end - lease_s / 6 - monotonic()) for end in ends)])

    def _renew(self, leases: dict[str, Held], lost: set[str], asked_at: float) -> None:
        given_up = 0
        for id, held in leases.items():
            if id not in lost:
                held.lease.expires_at = max(held.lease.expires_at, asked_at + self._session.lease_s)
            elif self._session.holdings.get(id) is held and not held.handled:
                # One that is handled may just have been settled: its settle says what became of it.
                self._session.holdings.lose(held)
                given_up += 1
        self._note_lost(given_up)

    def _give_up_late(self) -> None:
        last_moment = monotonic() + self._session.lease_s / 6
        late = [
            held
            for held in self._session.holdings.all()
            if held.shard is self._shard and not held.handled and held.lease.expires_at < last_moment
        ]
        for held in late:
            self._session.holdings.lose(held)
        self._note_lost(len(late))

    def _note_lost(self, letters: int) -> None:
        if letters:
            self._session.recorder.lease_lost(self._session.config.queue, letters)
            logger.warning("shard %s: %d leases were lost; their handlers are cancelled", self._shard.tag, letters)

    async def _release_forgotten(self, extended: Extended) -> None:
        """Give back leases that this consumer has and does not know of: the reply of a `take` was lost.

        Only what two beats in a row found: a `take` may be on its way.
        """
        unknown = {pair for pair in extended.forgotten if self._session.holdings.get(pair[0]) is None}
        twice = unknown & self._forgotten
        self._forgotten = unknown - twice
        await self._release(twice)

    async def release_all(self) -> None:
        """Give back every lease of this consumer, when it holds nothing, and no `take` is on its way."""
        await self._release(set((await self._shard.extend(self._session.consumer, [])).forgotten))

    async def _release(self, leases: set[tuple[str, int]]) -> None:
        if leases:
            logger.warning("shard %s: %d leases were forgotten; they are released", self._shard.tag, len(leases))
            await self._shard.settle(self._session.consumer, [Outcome(*pair, Verb.RELEASE) for pair in sorted(leases)])
