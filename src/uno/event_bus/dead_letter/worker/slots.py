"""The pool of long-lived tasks in which handlers run."""

from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from uno.event_bus.dead_letter.worker.holdings import Held

__all__ = ["Slot", "Slots"]


class Slot:
    """One task that runs one handler after another.

    It costs no task, channel hop or cancel scope per letter: the scope is made anew only after it was used to
    cancel a handler.
    """

    def __init__(self, slots: "Slots") -> None:
        self._slots = slots
        self._scope = anyio.CancelScope()
        self.held: Held | None = None
        """What runs here."""

    def cancel(self) -> None:
        """Cancel the handler that runs here; the slot goes on with the next letter."""
        self._scope.cancel()

    async def run(self) -> None:
        """Run letters until the worker cancels the task."""
        while True:
            with anyio.CancelScope() as self._scope:
                # A cancellation may come when its handler has just ended: it must not reach the next letter.
                while not self._scope.cancel_called:
                    held = self._slots.next()
                    if held is None:
                        await self._slots.wait()
                        continue
                    self.held, held.slot = held, self
                    try:
                        await self._slots.attempt(held)
                    finally:
                        self.held = held.slot = None


class Slots:
    """Letters that wait for a handler task, and the tasks that wait for a letter."""

    def __init__(self, attempt: Callable[[Held], Awaitable[None]]) -> None:
        self.attempt = attempt
        self._queue: deque[Held] = deque()
        self._idle: deque[anyio.Event] = deque()
        self._woken = False
        """A task was woken and has not come yet."""

    def put(self, letters: list[Held]) -> None:
        """Hand letters to the tasks."""
        self._queue.extend(letters)
        self._wake_one()

    def put_first(self, held: Held) -> None:
        """Hand a letter to the tasks before all others."""
        self._queue.appendleft(held)
        self._wake_one()

    def withdraw(self) -> list[Held]:
        """Return the letters that no task has started, and forget them."""
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    def next(self) -> Held | None:
        """Return the next letter.

        Each task wakes the next one as it starts a letter, one at a time: handlers that never wait run one after
        another in a single task, and no crowd is woken for them.
        """
        if not self._queue:
            return None
        held = self._queue.popleft()
        if self._queue:
            self._wake_one()
        return held

    def _wake_one(self) -> None:
        if self._idle and not self._woken:
            self._woken = True
            self._idle.popleft().set()

    async def wait(self) -> None:
        """Wait until there may be a letter."""
        event = anyio.Event()
        self._idle.append(event)
        try:
            await event.wait()
        except BaseException:
            if event.is_set():
                self._woken = False
                self._wake_one()  # the wake-up was for a task that is going: it must not get lost
            else:
                self._idle.remove(event)
            raise
        self._woken = False
