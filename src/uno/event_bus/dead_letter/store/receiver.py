"""What captures go to, as those who capture see it: the store, or a service in front of one."""

from collections.abc import Sequence
from typing import Protocol

from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.captures import Result
from uno.event_bus.dead_letter.store.lookup import Kept

__all__ = ["Receiver"]


class Receiver(Protocol):
    """It takes letters home by home, and a home that does not answer is away alone."""

    @property
    def homes(self) -> int:
        """Home shards of letters, as far as it tells them apart."""
        ...

    @property
    def window_s(self) -> float:
        """Seconds for which a repeated capture is told as one, at least; 0: not at all."""
        ...

    def home_of(self, new: NewLetter) -> int:
        """Return the home of a letter, from 0; letters of one home keep their order."""
        ...

    async def add(self, letters: Sequence[NewLetter]) -> Sequence[Result]:
        """Capture letters; return by position its id, None (its home is full) or its error."""
        ...

    async def known(self, kept: Sequence[Kept], *, now_ms: int) -> set[int]:
        """Return the positions of those that stand in the queue; `now_ms` is the caller's clock.

        Raises `StoreUnavailable`, for all of them when one of their homes does not answer.
        """
        ...
