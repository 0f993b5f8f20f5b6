"""The taker of one shard: leases letters as fast as there is room for them, and sleeps when there are none."""

from collections.abc import Callable
from math import inf
from time import monotonic, time_ns

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.store.meaning import Meaning, classify
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH, Taken
from uno.event_bus.dead_letter.worker.holdings import Held, note_take
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Taker"]

LONGEST_SLEEP_S = 1.0
LONGEST_PAUSE_S = 2.0
PAUSE_S = 0.1
"""Between looks whether letters may be taken again, while leases cannot be kept or no thread is left."""


class Taker:
    """Asks for letters while there are any; then waits for a new one, the next due one, or a wake-up."""

    def __init__(self, session: Session, shard: Shard, dispatch: Callable[[list[Held]], None]) -> None:
        self._session = session
        self.shard = shard
        self._dispatch = dispatch
        self._batch_size = min(session.config.batch_size, LARGEST_BATCH)
        self._wake = anyio.Event()
        self._replan = anyio.Event()
        self._trouble = session.outages.of(f"shard {shard.tag}")
        self._listening = session.outages.of(f"shard {shard.tag}")
        self._due_at = inf
        """Monotonic time at which the earliest letter is due that this process has scheduled since the last `take`."""
        self.replied_at = monotonic()
        """Monotonic time of the shard's last reply."""
        self.unanswered_since: float | None = None
        """Monotonic time of the first `take` since then; None: it was not asked, for want of room or of letters."""
        self.waits_for_room = False
        """It does not ask: whether the shard answers, heartbeats tell meanwhile."""
        self._listen_from: bytes | None = None
        self._listen = anyio.Event()
        self.ready = anyio.Event()
        """Set after the first reply of the shard."""
        self._found_nothing = False
        self.group_was_missing = anyio.Event()
        """Set when the consumer group had to be made: the sweeper repairs at once."""
        self.suspect_due_ms: int | None = None
        """Due time of the suspect that has waited longest on this shard."""

    @property
    def is_idle(self) -> bool:
        """Whether the last `take` found nothing, and nothing has become due since: what `process` waits for.

        So is a worker whose threads all hang: what is due can be run by others only.
        """
        return self._session.is_stuck or (self._found_nothing and self._due_at > monotonic())

    def wake(self) -> None:
        """Take again now."""
        self._found_nothing = False
        self._wake.set()
        self._replan.set()

    def scheduled(self, delay_s: float) -> None:
        """Note that this process has scheduled a letter: the taker wakes up when it is due."""
        self._due_at = min(self._due_at, monotonic() + delay_s)
        self._replan.set()

    def suspect_seen(self) -> None:
        """Note that the shard has a suspect that is due."""
        if self.suspect_due_ms is None:
            self.suspect_due_ms = self._session.clock.now_ms()

    async def run(self) -> None:
        """Take until the holdings are shut.

        A `take` that is on its way then is finished: its letters would be leased, and forgotten.
        """
        pause = 0.05
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen_for_new)
            while places := await self._turn():
                self._wake = anyio.Event()
                if not self._session.can_run(self.shard.index):
                    self._session.holdings.hold(places, [])
                    await self._pause()
                    continue
                try:
                    taken = await self._take(places)
                except DeadLetterError as error:
                    self._trouble.failed("cannot take letters", error)
                    self._session.recorder.store_failed(self._session.config.queue)
                    await self._sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE_S)
                else:
                    pause = 0.05
                    await self._rest(taken)
            group.cancel_scope.cancel()

    async def _turn(self) -> int:
        """Wait until the shard is this worker's to serve, then for room; return how many letters may be taken."""
        while self.shard.index not in self._session.served and not self._session.holdings.is_shut:
            self.suspect_due_ms, self._found_nothing = None, True
            self._wake = anyio.Event()
            await self.shard.hang_up()
            await self._wake.wait()
            self.replied_at, self.unanswered_since = monotonic(), None
        self.waits_for_room = True
        try:
            return await self._session.holdings.reserve(self._batch_size)
        finally:
            self.waits_for_room = False

    async def take_alone(self) -> bool:
        """Take one due suspect, when this worker holds nothing; answer whether there was one."""
        taken = await self._take(self._session.holdings.reserve_alone(), alone=True)
        return bool(taken.letters)

    async def _take(self, places: int, *, alone: bool = False) -> Taken:
        letters: list[Held] = []
        if not alone:
            self._due_at = inf  # before it is sent: what is scheduled from here on, it may not have seen
        if self.unanswered_since is None:
            self.unanswered_since = monotonic()
        tracing = self._session.tracing
        began_ns = time_ns() if tracing is not None else 0
        try:
            taken = await self.shard.take(self._session.consumer, 0 if alone else places, alone=alone)
            ahead_s = taken.now_ms / 1000 - monotonic()
            letters = [
                Held(letter, letter.lease, self.shard, server_ahead_s=ahead_s)
                for letter in taken.letters
                if letter.lease
            ]
        except StoreUnavailable as error:
            if not error.certain:
                self._session.unheard.add(self.shard.index)
            raise
        finally:
            self._session.holdings.hold(places, letters)
        self._trouble.over()
        self._session.clock.heard(taken.now_ms)
        self.replied_at, self.unanswered_since = monotonic(), None
        self.suspect_due_ms = taken.suspect_due_ms
        if not alone:
            self._found_nothing = not (letters or taken.more)
        self.ready.set()
        if taken.remade:
            self.group_was_missing.set()
        if letters:
            if tracing is not None:
                note_take(tracing, self.shard, letters, began_ns)
            self._dispatch(letters)
        return taken

    async def _rest(self, taken: Taken) -> None:
        """Sleep until the next due time, a new letter or a wake-up, at most 1 s; not at all while there is more."""
        if taken.more or taken.letters:
            return
        self._listen_from = taken.mark
        self._listen.set()
        due_in_s = LONGEST_SLEEP_S
        if taken.next_due_ms is not None:
            due_in_s = min(due_in_s, max(0.001, (taken.next_due_ms - taken.now_ms) / 1000))
        await self._sleep(due_in_s)

    async def _sleep(self, seconds: float) -> None:
        wakes_at = monotonic() + seconds
        while (left := min(wakes_at, self._due_at) - monotonic()) > 0 and not self._wake.is_set():
            self._replan = anyio.Event()
            with anyio.move_on_after(left):
                await self._replan.wait()

    async def _pause(self) -> None:
        """Wait a moment, whatever is due: nothing may be taken now."""
        with anyio.move_on_after(PAUSE_S):
            await self._wake.wait()

    async def _listen_for_new(self) -> None:
        """Wake the taker when the stream has an entry past the mark. Nothing is consumed by that."""
        while True:
            await self._listen.wait()
            self._listen = anyio.Event()
            try:
                await self.shard.wait(self._listen_from or b"0-0", LONGEST_SLEEP_S)
            except Exception as error:
                if classify(error) is Meaning.FATAL:
                    self._listening.failed("cannot listen for new letters", error)
                await anyio.sleep(0.1)  # the taker polls meanwhile
            else:
                self._listening.over()
                self._wake.set()
                self._replan.set()
            if self.shard.index not in self._session.served:
                await self.shard.hang_up()
