"""A ration: so many lines in so many seconds, and how many there would have been."""

from time import monotonic
from typing import Final

__all__ = ["MOST_LINES", "WINDOW_S", "Ration"]

MOST_LINES: Final = 5
WINDOW_S: Final = 10.0


class Ration:
    """Lines of one kind. Not for several threads at once."""

    __slots__ = ("_left", "_until", "unsaid")

    def __init__(self) -> None:
        self._left = 0
        self._until = 0.0
        self.unsaid = 0
        """Lines that were refused since one was allowed; whoever says so sets it to 0."""

    @property
    def is_over(self) -> bool:
        """Whether the window of the last line is over."""
        return monotonic() >= self._until

    def allows(self) -> bool:
        """Whether one more line may be written; else it is counted."""
        now = monotonic()
        if now >= self._until:
            self._left, self._until = MOST_LINES, now + WINDOW_S
        if self._left:
            self._left -= 1
            return True
        self.unsaid += 1
        return False
