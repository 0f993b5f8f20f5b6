"""The journal: what the shop's handlers saw and did, written down by themselves, apart from the queue's books.

At the end the ledger lays the two side by side. A note is written before its handler returns, so whatever the
queue has settled stands in the journal, too; the reverse need not be so (a worker may die in between).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

__all__ = ["Journal", "Key", "Note", "Outcome"]

type Key = tuple[str, str]
"""Event id and subscription: what makes a letter one letter."""


class Outcome(StrEnum):
    """How one run of a handler ended."""

    WORKED = "worked"
    FAILED = "failed"
    LATER = "later"
    """The handler asked to be called again later, without counting a failure."""
    DISCARDED = "discarded"
    PARKED = "parked"
    """No run: the queue said that it has parked the letter."""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """One run of a handler."""

    worker: str
    """``shop`` when the event was published, else the worker's name."""
    event_id: str
    type: str
    subscription: str
    attempt: int
    """0 when the event was published, from 1 for a letter."""
    outcome: Outcome
    why: str
    digest: str
    """Of the payload's bytes, as the handler got them."""

    @property
    def key(self) -> Key:
        """Which letter it is about."""
        return self.event_id, self.subscription


class Journal:
    """All notes, by letter, and who wants to hear of each new one."""

    def __init__(self) -> None:
        self.captured: dict[Key, str] = {}
        """Letter → type of its event, in the order of the failures that made them letters."""
        self.ended: dict[Outcome, set[Key]] = {outcome: set() for outcome in Outcome}
        """Outcome → letters whose handler ended so at least once."""
        self.attempts: Counter[Key] = Counter()
        """Letter → runs of its handler after the capture."""
        self.worked: Counter[Key] = Counter()
        """Letter → runs that worked: more than one, if a worker died before it could settle."""
        self.digests: dict[Key, set[str]] = {}
        """Letter → digests of all payloads that its handler got."""
        self.neighbours = 0
        """Runs at publication that worked: nothing to do with any letter."""
        self.by_worker: Counter[str] = Counter()
        """Worker → runs."""
        self.listeners: list[Callable[[Note], None]] = []

    def write(self, note: Note) -> None:
        """Add a note."""
        if note.attempt == 0 and note.outcome is Outcome.WORKED:
            self.neighbours += 1
            return
        if note.outcome is Outcome.PARKED:
            self.ended[Outcome.PARKED].add(note.key)
        elif note.attempt == 0:
            self.captured[note.key] = note.type
            self.digests.setdefault(note.key, set()).add(note.digest)
        else:
            self.ended[note.outcome].add(note.key)
            self.attempts[note.key] += 1
            self.worked[note.key] += note.outcome is Outcome.WORKED
            self.by_worker[note.worker] += 1
            self.digests.setdefault(note.key, set()).add(note.digest)
        for tell in self.listeners:
            tell(note)

    def histogram(self, keys: Iterable[Key]) -> dict[int, int]:
        """Return attempts → letters that took so many, for these letters."""
        return dict(sorted(Counter(self.attempts[key] for key in keys).items()))
