"""The letters that a worker holds leases on, and its room for more."""

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import anyio

from uno.event_bus.dead_letter.letter import Lease, Letter, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Outcome
from uno.event_bus.dead_letter.telemetry.tracing.carriers import LetterTrace
from uno.event_bus.dead_letter.telemetry.tracing.tracers import harmless
from uno.event_bus.dead_letter.telemetry.tracing.work import WorkSpans

if TYPE_CHECKING:
    from uno.event_bus.dead_letter.worker.slots import Slot

__all__ = ["Before", "Held", "Holdings", "note_take"]

RATE_WINDOW_S = 0.02
AHEAD_S = 0.1


class Before(NamedTuple):
    """How a letter was before it was taken by its id: it goes back like that when it was not run."""

    is_parked: bool
    due_ms: int
    """When it was due if it was not parked, Unix time by the server's clock, ms."""
    reason: str
    """Why it was parked if it was."""

    def put_back(self, letter_id: str, token: int, now_ms: int) -> Outcome:
        """Return the outcome that ends the letter's lease and leaves it as it was."""
        if self.is_parked:
            return Outcome(letter_id, token, Verb.PARK, reason=self.reason)
        return Outcome(letter_id, token, Verb.RELEASE, max(0, self.due_ms - now_ms))


@dataclass(slots=True, eq=False)
class Held:
    """One letter in this worker's hands."""

    letter: Letter
    lease: Lease
    shard: Shard
    aside: bool = False
    """It waits in line for a handler that runs as many as it may: others may have its place."""
    handled: bool = False
    """Its handler is done, or it will not be started: only the settle is open."""
    slot: "Slot | None" = None
    """Where its handler runs."""
    put_back: bool = False
    """It goes back as it was before a replay took it: no hook, and no report of a letter parked or retried."""
    server_ahead_s: float | None = None
    """The server's time less this process's monotonic clock, s, as of its `take`; None: it was not taken as due."""
    before: Before | None = None
    """None: a letter that has to go back is due again after what its release says."""
    trace: LetterTrace | None = None
    """What its spans need of each other; None while nobody traces."""


@harmless
def note_take(tracing: WorkSpans, shard: Shard, letters: list[Held], began_ns: int) -> None:
    """Have a take that gave letters traced; it began at `began_ns`, Unix time."""
    address = shard.route.primary.target.address
    traces = tracing.received([held.letter for held in letters], began_ns, shard.index, address)
    for held, trace in zip(letters, traces or (), strict=False):
        held.trace = trace


class Holdings:
    """Counts places: as many letters as handlers may run, and some ahead so that none of them waits.

    How many ahead follows what was handled lately: with slow handlers nobody sits on letters that an idle
    worker could run, with fast ones a batch is always at hand.
    """

    def __init__(self, concurrency: int, batch_size: int) -> None:
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._held: dict[str, Held] = {}
        self._unhandled = 0
        self._aside = 0
        self._reserved = 0
        self._turns: deque[object] = deque()
        self._ahead = 0
        self._handled = 0
        self._window_at = monotonic()
        self._closed = False
        self._shut = False
        self._changed: anyio.Event | None = None
        """Exists only while somebody waits: the hot path then costs a comparison."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, nor on its way from a `take`."""
        return not self._held and not self._reserved

    @property
    def is_shut(self) -> bool:
        """Whether `shut` was called: the worker is stopping."""
        return self._shut

    @property
    def unhandled(self) -> int:
        """Letters whose handlers run or have not started."""
        return self._unhandled

    def all(self) -> list[Held]:
        """Return what is held, oldest take first."""
        return list(self._held.values())

    def get(self, letter_id: str) -> Held | None:
        """Return the held letter of this id."""
        return self._held.get(letter_id)

    # -- places --------------------------------------------------------------------------------------

    async def reserve(self, most: int) -> int:
        """Wait for room and return how many letters may be taken now, 0 after `shut`; give back with `hold`.

        Callers take turns: under load the taker of one shard must not be quicker than all others for ever.
        """
        turn = object()
        self._turns.append(turn)
        try:
            while not self._shut:
                self._follow_rate()
                if self._turns[0] is turn and self.has_room:
                    places = min(self._room, most)
                    self._reserved += places
                    return places
                await self.changed()
            return 0
        finally:
            self._turns.remove(turn)
            if self._turns and self.has_room:
                self._notify()

    @property
    def _room(self) -> int:
        # While outcomes cannot be settled, no more letters are run than a batch or two wait for it.
        unsettled = max(0, len(self._held) - self._unhandled - 2 * self._batch_size)
        return self._concurrency + self._ahead - (self._unhandled - self._aside) - self._reserved - unsettled

    @property
    def has_room(self) -> bool:
        """Whether `reserve` would give places now."""
        # Small takes would cost a round trip a letter; but a place must not stand empty behind slow handlers.
        return not self._closed and self._room >= max(1, self._ahead // 2)

    def _follow_rate(self) -> None:
        now = monotonic()
        elapsed = now - self._window_at
        if elapsed >= RATE_WINDOW_S:
            self._ahead = min(self._batch_size, int(self._handled / elapsed * AHEAD_S))
            self._handled, self._window_at = 0, now

    def reserve_alone(self) -> int:
        """Reserve the one place of a suspect, inside `alone`; give back with `hold`."""
        self._reserved += 1
        return 1

    def hold(self, places: int, letters: list[Held]) -> None:
        """Turn reserved places into held letters; what is not used is free again."""
        self._reserved -= places
        for held in letters:
            older = self._held.get(held.letter.id)
            if older is not None:
                self.lose(older)
            self._held[held.letter.id] = held
        self._unhandled += len(letters)
        self._notify()

    def handled(self, held: Held) -> None:
        """Note that a letter's handler is done: its place is free, its lease is not yet."""
        if not held.handled:
            self.take_up(held)
            held.handled = True
            self._unhandled -= 1
            self._handled += 1
            if self._changed is not None and (self.has_room or not self._unhandled):
                self._notify()

    def set_aside(self, held: Held) -> None:
        """Free the place of a letter that waits in line."""
        if not held.aside:
            held.aside = True
            self._aside += 1
            self._notify()

    def take_up(self, held: Held) -> None:
        """Give a letter its place again."""
        if held.aside:
            held.aside = False
            self._aside -= 1

    def lose(self, held: Held) -> None:
        """Give a letter up whose lease is another's: its handler is cancelled, and settles nothing."""
        held.lease.lost = True
        if held.slot is not None:
            held.slot.cancel()
        self.drop(held)

    def drop(self, held: Held) -> None:
        """Forget a letter: it is settled, or its lease is another's."""
        self.handled(held)
        if self._held.get(held.letter.id) is held:
            del self._held[held.letter.id]
            if not self._held or self.has_room:
                self._notify()

    # -- waiting -------------------------------------------------------------------------------------

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def changed(self) -> None:
        """Wait until room or emptiness may have changed."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    async def emptied(self) -> None:
        """Wait until nothing is held and no `take` is on its way."""
        while not self.is_empty:
            await self.changed()

    async def arrived(self) -> None:
        """Wait until no `take` is on its way."""
        while self._reserved:
            await self.changed()

    def shut(self) -> None:
        """Give no places any more."""
        self._shut = True
        self._notify()

    @asynccontextmanager
    async def alone(self, *, within_s: float) -> AsyncGenerator[bool]:
        """Give no places to others; enter when nothing is held, with True, or after so many seconds, with False."""
        self._closed = True
        try:
            with anyio.move_on_after(within_s):
                await self.emptied()
            yield self.is_empty
        finally:
            self._closed = False
            self._notify()
