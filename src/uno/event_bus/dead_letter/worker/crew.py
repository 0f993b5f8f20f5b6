"""The crew: all that looks after letters in hand, for a worker as for a replay."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.failure import sole_error
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome
from uno.event_bus.dead_letter.telemetry.log_fields import bind, fields_of
from uno.event_bus.dead_letter.worker.attempt import Attempts, release
from uno.event_bus.dead_letter.worker.heartbeat import Heartbeat
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session, keep_running
from uno.event_bus.dead_letter.worker.settler import Settler
from uno.event_bus.dead_letter.worker.slots import Slot, Slots

__all__ = ["Crew", "shielded"]

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""How long the end waits for the last outcomes to be settled; what is not settled then waits for its lease."""


class Crew:
    """Slots in which handlers run, a settler and a heartbeat per shard."""

    def __init__(self, session: Session, scheduled: Callable[[Shard, float], None] | None = None) -> None:
        self._session = session
        self.grace_s = session.config.shutdown_grace
        """Seconds that running handlers get at the end."""
        self._attempts = Attempts(session, self._settle, self._again)
        self._slots = Slots(self._attempts.run)
        self._scheduled = scheduled
        self._settlers: dict[int, Settler] = {}
        self._heartbeats: dict[int, Heartbeat] = {}

    def _settle(self, held: Held, outcome: Outcome) -> None:
        if outcome.verb is Verb.RELEASE and held.before is not None:
            outcome = held.before.put_back(held.letter.id, held.lease.token, self._session.clock.now_ms())
            held.put_back = True
        self._settlers[held.shard.index].put(held, outcome)

    def _again(self, held: Held) -> None:
        self._slots.put_first(held)

    def look_after(self, shard: Shard, group: TaskGroup) -> None:
        """Start a settler and a heartbeat for a shard, in a group."""
        settler = self._settlers[shard.index] = Settler(self._session, shard, self._scheduled)
        group.start_soon(keep_running, "settler", settler.run, shard)
        heartbeat = self._heartbeats[shard.index] = Heartbeat(self._session, shard)
        group.start_soon(keep_running, "heartbeat", heartbeat.run, shard)

    def dispatch(self, letters: list[Held]) -> None:
        """Hand letters that were just leased to the handlers."""
        self._slots.put(letters)

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[TaskGroup]:
        """Look after letters while the block runs; then let handlers finish in `grace_s`, and give back the rest.

        Yields a task group for further background roles; it ends after the last letter is settled. When the block
        raises, handlers get no grace time, and all that is in hand is given back before the error goes on.
        """
        failure: Exception | None = None
        session = self._session
        bind(queue=session.config.queue, worker=session.consumer)
        async with (
            session.threads,
            session.hook_threads,
            anyio.create_task_group() as session.tasks,
            anyio.create_task_group() as background,
        ):
            for shard in session.store.shards:
                self.look_after(shard, background)
            async with anyio.create_task_group() as slots:
                made = [Slot(self._slots) for _ in range(session.config.concurrency)]
                for slot in made:
                    slots.start_soon(keep_running, "slot", slot.run)
                session.recorder.crew_began(session.config.queue, session.consumer, partial(_busy, made), len(made))
                try:
                    yield background
                except Exception as error:
                    failure, self.grace_s = error, 0.0
                await self._finish()
                slots.cancel_scope.cancel()
            session.recorder.crew_ended(session.config.queue, session.consumer)
            await self._give_back()
            background.cancel_scope.cancel()
            session.tasks.cancel_scope.deadline = anyio.current_time() + self.grace_s
        if failure is not None:
            raise failure

    async def _finish(self) -> None:
        """Release what was not started, and let run what was, within the grace time."""
        holdings = self._session.holdings
        await holdings.arrived()
        for held in [*self._slots.withdraw(), *self._attempts.withdraw()]:
            self._release(held)
        with anyio.move_on_after(self.grace_s):
            while holdings.unhandled:
                await holdings.changed()

    async def _give_back(self) -> None:
        """Release what was cancelled, and settle all that is still open."""
        for held in self._session.holdings.all():
            if not held.handled:
                logger.warning(
                    "letter %s: its handler did not end in time; the letter is released",
                    held.letter.id,
                    extra={"shard": held.shard.index, **fields_of(held.letter)},
                )
                self._release(held)
        with anyio.move_on_after(FLUSH_S):
            await self._session.holdings.emptied()
            for index in self._session.unheard:
                with suppress(DeadLetterError):  # their leases run out
                    await self._heartbeats[index].release_all()

    def _release(self, held: Held) -> None:
        if held.lease.still_mine():
            self._session.holdings.handled(held)
            self._settle(held, release(held))
        else:
            self._session.holdings.drop(held)


def _busy(slots: Iterable[Slot]) -> int:
    return sum(slot.held is not None for slot in slots)


async def shielded(serve: Callable[[], Awaitable[None]], on_cancel: Callable[[], None]) -> None:
    """Run `serve` to its end; when the caller is cancelled, tell it by `on_cancel` and wait for it all the same.

    What holds leases must not be torn down: it gives them back first. An error of `serve` reaches the caller as it
    is, not in a group.
    """
    done = anyio.Event()
    failure: BaseException | None = None

    async def protected() -> None:
        nonlocal failure
        try:
            with anyio.CancelScope(shield=True):
                await serve()
        except Exception as error:
            failure = sole_error(error)
        finally:
            done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(protected)
        try:
            await done.wait()
        except anyio.get_cancelled_exc_class():
            on_cancel()
            raise
    if failure is not None:
        raise failure
