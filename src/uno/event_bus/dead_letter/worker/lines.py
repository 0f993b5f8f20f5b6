"""Lines: letters that wait for a handler with a concurrency of its own, without a slot that others could use."""

from collections import deque
from dataclasses import dataclass, field

from uno.event_bus.dead_letter.handlers import Handler
from uno.event_bus.dead_letter.worker.holdings import Held, Holdings

__all__ = ["Line", "Lines"]


@dataclass(slots=True)
class Line:
    """The letters of one handler: how many run, and which wait."""

    running: int = 0
    waiting: deque[Held] = field(default_factory=deque)


class Lines:
    """One line a handler. Letters in line take no room from others, and at most `longest` of them wait."""

    def __init__(self, holdings: Holdings, longest: int) -> None:
        self._holdings = holdings
        self._longest = longest
        self._lines: dict[str, Line] = {}
        self._called: dict[Held, Line] = {}
        """Letters that were next in line, and the line in which a place is kept for each."""

    def enter(self, held: Held, handler: Handler) -> bool | None:
        """Answer True when the letter may run now, False when it waits in line, None when the line is full."""
        line = self._lines.setdefault(handler.id, Line())
        if self._called.get(held) is line:
            del self._called[held]
            return True
        if line.running < (handler.concurrency or 0):
            line.running += 1
            return True
        if len(line.waiting) >= self._longest:
            return None
        line.waiting.append(held)
        self._holdings.set_aside(held)
        return False

    def leave(self, handler: Handler) -> Held | None:
        """Note that an attempt has ended; return the letter that is next in line."""
        return self._call(self._lines[handler.id])

    def pass_on(self, held: Held) -> Held | None:
        """Return the letter that gets the place which was kept for this one, and not taken: its handler was removed."""
        line = self._called.pop(held, None)
        return None if line is None else self._call(line)

    def _call(self, line: Line) -> Held | None:
        while line.waiting:
            held = line.waiting.popleft()
            self._holdings.take_up(held)
            if held.lease.still_mine():
                self._called[held] = line
                return held
            self._holdings.drop(held)
        line.running -= 1
        return None

    def withdraw(self) -> list[Held]:
        """Return the letters in line, and forget them."""
        waiting = [held for line in self._lines.values() for held in line.waiting]
        for line in self._lines.values():
            line.waiting.clear()
        return waiting
