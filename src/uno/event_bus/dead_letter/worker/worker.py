"""The worker: every role in one task group, a readiness handshake, and an ordered stop."""

from collections.abc import Sequence
from functools import partial
from time import monotonic

import anyio
from anyio.abc import TaskGroup

from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.worker.assignment import Assignment
from uno.event_bus.dead_letter.worker.crew import Crew, shielded
from uno.event_bus.dead_letter.worker.inspector import Inspector
from uno.event_bus.dead_letter.worker.isolator import Isolator
from uno.event_bus.dead_letter.worker.reclaimer import Reclaimer
from uno.event_bus.dead_letter.worker.session import Session, keep_running
from uno.event_bus.dead_letter.worker.sweeper import Sweeper
from uno.event_bus.dead_letter.worker.taker import Taker
from uno.event_bus.dead_letter.worker.watchdog import Watchdog

__all__ = ["Worker"]

UNABLE_AFTER_S = 5.0
"""A worker that has taken nothing for this long, or for a lease, leaves its shards to others: an idle one asks each
second."""


class Worker:
    """Serves a queue from this process: its part of the shards, or with `until_idle` all of them. Runs once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stop = anyio.Event()
        self._crew = Crew(session, self._scheduled)
        self._takers: list[Taker] = []
        """Of each shard, served or not, by its index."""
        self._sweepers: list[Sweeper] = []
        self._isolator = Isolator(session, self._takers)
        self.ready = anyio.Event()
        """Set when every shard that it serves has answered."""

    def _scheduled(self, shard: Shard, delay_s: float) -> None:
        self._takers[shard.index].scheduled(delay_s)

    @property
    def session(self) -> Session:
        """What its roles share."""
        return self._session

    @property
    def takers(self) -> Sequence[Taker]:
        """One of each shard, served or not, by its index."""
        return self._takers

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more letters: `stop` was called, it was cancelled, or it has ended."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Begin the ordered stop: take no more, let handlers finish within the grace time, settle, leave."""
        self._stop.set()

    async def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop`; or, with `until_idle`, until nothing is due.

        Cancelling it is an ordered stop without the grace time: handlers are cancelled, their letters released.
        """
        await shielded(partial(self._serve, until_idle), self._stop_now)

    def _stop_now(self) -> None:
        self._crew.grace_s = 0.0
        self._stop.set()

    async def _serve(self, until_idle: bool) -> None:
        async with self._crew.at_work() as background:
            background.start_soon(keep_running, "isolator", self._isolator.run)
            background.start_soon(keep_running, "watchdog", Watchdog(self._session, self._takers).run)
            async with anyio.create_task_group() as taking:
                reassigned = partial(self._reassigned, background, taking)
                assignment = Assignment(self._session, reassigned, self._is_able)
                if not until_idle:
                    assignment.begin()
                    taking.start_soon(keep_running, "assignment", assignment.run)
                    background.start_soon(self._announce, assignment)
                    background.start_soon(keep_running, "inspector", Inspector(self._session).run)
                for shard in self._session.store.shards:
                    self._look_after(shard, background, taking)
                await (self._idle() if until_idle else self._stop.wait())
                assignment.leave()
                self._session.holdings.shut()
                for taker in self._takers:
                    taker.wake()

    def _look_after(self, shard: Shard, background: TaskGroup, taking: TaskGroup) -> None:
        """Start the roles of one shard; they rest while it is not served."""
        taker = Taker(self._session, shard, self._crew.dispatch)
        sweeper = Sweeper(self._session, taker)
        self._takers.append(taker)
        self._sweepers.append(sweeper)
        background.start_soon(keep_running, "sweeper", sweeper.run, shard)
        reclaimer = Reclaimer(self._session, shard, taker.suspect_seen)
        background.start_soon(keep_running, "reclaimer", reclaimer.run, shard)
        taking.start_soon(keep_running, "taker", taker.run, shard)

    def _reassigned(self, background: TaskGroup, taking: TaskGroup) -> None:
        """Serve other shards than before; some of them may be new."""
        for shard in self._session.store.shards[len(self._takers) :]:
            self._crew.look_after(shard, background)
            self._look_after(shard, background, taking)
        for taker in self._takers:
            taker.wake()

    def _is_able(self) -> bool:
        """Whether any shard that is served was lately asked for letters, and has answered.

        None was when handlers hang in all places, every thread is left, a suspect runs alone for long, or the nodes
        of these shards cannot be reached from here.
        """
        since = monotonic() - max(self._session.lease_s, UNABLE_AFTER_S)
        served = [taker for taker in self._takers if taker.shard.index in self._session.served]
        return not served or any(taker.replied_at > since for taker in served)

    async def _announce(self, assignment: Assignment) -> None:
        await assignment.known.wait()
        while waited_for := [taker for taker in self._takers if self._is_awaited(taker)]:
            with anyio.move_on_after(self._session.tick_s):  # it may be another worker's by then
                await waited_for[0].ready.wait()
        self.ready.set()

    def _is_awaited(self, taker: Taker) -> bool:
        return taker.shard.index in self._session.served and not taker.ready.is_set()

    async def _idle(self) -> None:
        """Wait until no shard has anything due and nothing is held, and no lease of a dead worker has run out."""
        holdings = self._session.holdings
        while not self._stop.is_set():
            pause_s = 0.01
            if self._is_idle():
                if not await self._has_letters_of_dead_workers():
                    return
                pause_s = self._session.tick_s  # until the reclaimers may take them back
            with anyio.move_on_after(pause_s):
                await holdings.changed()

    def _is_idle(self) -> bool:
        idle = all(taker.is_idle for taker in self._takers) and self._session.holdings.is_empty
        behind = any(sweeper.is_behind for sweeper in self._sweepers)
        return idle and not behind and not self._isolator.has_due()

    async def _has_letters_of_dead_workers(self) -> bool:
        """Whether letters wait to be taken back, or just were: where only `process` is used, nobody else runs them."""
        if self._session.is_stuck:
            return False
        return any([await self._has_any_of_dead_workers(taker) for taker in self._takers])

    async def _has_any_of_dead_workers(self, taker: Taker) -> bool:
        if await taker.shard.has_leases_older_than(self._session.lease_s):
            return True
        # Asked after the leases: what a reclaimer took back meanwhile, ours or another's, is seen there or here. With a
        # tick to spare, since this process's idea of the server's time is late by what a reply took.
        now_ms = self._session.clock.now_ms() + int(self._session.tick_s * 1000)
        has_suspects = await taker.shard.has_suspects_due_by(now_ms)
        if has_suspects:
            taker.suspect_seen()
        return has_suspects
