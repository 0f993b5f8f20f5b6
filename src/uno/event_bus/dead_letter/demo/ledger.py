"""The ledger: what became of every letter, by the queue's books and by the journal of the handlers.

Each side is blind to some losses: the queue's totals do not know what should have been captured, the journal does
not know what was settled. So both are asked, and a letter counts as accounted for only if both know its end.
"""

from collections import Counter
from dataclasses import dataclass, field

from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
from uno.event_bus.dead_letter.demo.journal import Journal, Key, Outcome

__all__ = ["Count", "Ledger", "ParkedLetter"]


@dataclass(frozen=True, slots=True)
class ParkedLetter:
    """A letter that the queue still holds, parked, with the digest of its payload as it is stored."""

    key: Key
    digest: str


@dataclass(slots=True)
class Count:
    """Letters of one kind, by their end."""

    captured: int = 0
    resolved: int = 0
    parked: int = 0
    discarded: int = 0

    @property
    def unaccounted(self) -> int:
        """Letters without an end; below 0: letters with more than one."""
        return self.captured - self.resolved - self.parked - self.discarded


@dataclass(frozen=True, slots=True)
class Ledger:
    """The end of the demo."""

    books: Count
    """By the queue's own totals, and what it holds parked."""
    by_kind: dict[tuple[str, str], Count]
    """Event type and subscription → by the journal."""
    attempts: dict[int, int]
    """Attempts → resolved letters that needed so many."""
    twice: int
    """Letters whose handler has worked more than once: execution is at least once, and handlers idempotent."""
    retried: int
    crashed: int
    orphaned: int
    lost_externally: int
    neighbours: int
    by_worker: dict[str, int]
    bytes_sent: int
    altered: list[Key]
    """Letters whose handler, or whose parked entry, has other bytes than those that were published."""
    astray: list[Key]
    """Letters without an end in the journal, or with two."""
    violations: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        journal: Journal,
        stats: QueueStats,
        report: VerifyReport,
        parked: list[ParkedLetter],
        sent: dict[str, tuple[str, int]],
    ) -> "Ledger":
        """Draw up the ledger; ``sent`` has event id → digest and size of what was published."""
        totals = stats.totals
        ends = _ends(journal, parked)
        by_kind: dict[tuple[str, str], Count] = {}
        for key, type_ in journal.captured.items():
            count = by_kind.setdefault((type_, key[1]), Count())
            count.captured += 1
            for name in ends[key]:
                setattr(count, name, getattr(count, name) + 1)
        return cls(
            books=Count(totals["captured"], totals["resolved"], stats.parked, totals["discarded"]),
            by_kind=dict(sorted(by_kind.items())),
            attempts=journal.histogram(key for key, names in ends.items() if names == ["resolved"]),
            twice=sum(runs > 1 for runs in journal.worked.values()),
            retried=totals["retried"],
            crashed=totals["crashed"],
            orphaned=totals["orphaned"],
            lost_externally=totals["lost_externally"],
            neighbours=journal.neighbours,
            by_worker=dict(sorted(journal.by_worker.items())),
            bytes_sent=sum(sent[key[0]][1] for key in journal.captured),
            altered=_altered(journal, parked, sent),
            astray=[key for key, names in ends.items() if len(names) != 1],
            violations=[f"{each.kind} {each.letter_id} {each.where}" for each in report.violations],
        )

    @property
    def journal_total(self) -> Count:
        """The sum over all kinds, by the journal."""
        sums: Counter[str] = Counter()
        for count in self.by_kind.values():
            for name in ("captured", "resolved", "parked", "discarded"):
                sums[name] += getattr(count, name)
        return Count(**sums)

    @property
    def unaccounted(self) -> int:
        """Letters that either side misses, or gave two ends."""
        ours, books = self.journal_total, self.books
        differing = max(abs(ours.captured - books.captured), abs(ours.resolved - books.resolved))
        return max(abs(books.unaccounted), len(self.astray), differing)

    @property
    def sound(self) -> bool:
        """Whether `verify` is clean, all bytes are as they were, and nothing is unaccounted for."""
        return not (self.violations or self.altered or self.unaccounted)

    @property
    def last_line(self) -> str:
        """The whole story in one line."""
        books = self.books
        ends = f"resolved {books.resolved:,} + parked {books.parked:,} + discarded {books.discarded:,}"
        equal = "=" if not books.unaccounted else "≠"
        clean = "verify clean" if not self.violations else f"verify found {len(self.violations)} violations"
        return f"captured {books.captured:,} {equal} {ends}; {clean}; unaccounted {self.unaccounted:,}"


def _ends(journal: Journal, parked: list[ParkedLetter]) -> dict[Key, list[str]]:
    """Return letter → the ends that it has come to: exactly one, if all is well."""
    held = {letter.key for letter in parked}
    resolved, discarded = journal.ended[Outcome.WORKED], journal.ended[Outcome.DISCARDED]
    ends = {"resolved": resolved, "parked": held, "discarded": discarded}
    return {key: [name for name, keys in ends.items() if key in keys] for key in journal.captured}


def _altered(journal: Journal, parked: list[ParkedLetter], sent: dict[str, tuple[str, int]]) -> list[Key]:
    seen = {key: set(digests) for key, digests in journal.digests.items()}
    for letter in parked:
        seen.setdefault(letter.key, set()).add(letter.digest)
    return [key for key, digests in seen.items() if key[0] not in sent or digests != {sent[key[0]][0]}]
