"""The books of a queue: letters in each state, totals since it was made, and whether they add up."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from uno.event_bus.dead_letter.spool.folder import SpoolStats
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["QueueStats", "VerifyReport", "Violation", "stats_of", "verify"]

TOTALS = (
    "captured",
    "resolved",
    "retried",
    "parked",
    "released",
    "discarded",
    "expired",
    "orphaned",
    "lost_externally",
    "crashed",
    "redriven",
    "repeated",
    "new_error_groups",
)
"""Totals of a queue since it was made; `parked` is how often, not how many are parked now."""

PLACES_A_CALL: Final = 500
"""Entries and rows that one call of `verify` checks, at most."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a queue holds now and has done so far."""

    queue: str
    shards: int
    open: int
    """Letters in any state."""
    waiting: int
    leased: int
    scheduled: int
    suspects: int
    held: int
    parked: int
    error_groups: int
    consumers: int
    totals: dict[str, int]
    now_ms: int
    """The server's time."""
    oldest_ms: int | None
    """When the oldest open letter was captured."""
    next_due_ms: int | None
    by_shard: list[dict[str, int | str]] = field(repr=False)
    spool: SpoolStats | None = None
    """What waits on this machine to come in; None without ``spool_dir``, and when the disk does not tell."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that a letter breaks.

    `kind` is ``orphan`` (in no state), ``twice`` (in several), ``row`` (an index names a letter that is gone),
    ``ahead`` (an index names a letter that was not taken in), ``token`` (a lease's token was never drawn) or
    ``drift`` (letters are gone without an end).
    """

    kind: str
    letter_id: str
    where: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found: the invariants, and the books."""

    violations: list[Violation]
    letters: int
    captured: int
    resolved: int
    discarded: int
    expired: int
    orphaned: int
    lost_externally: int

    @property
    def difference(self) -> int:
        """Captured letters that are neither here nor have come to an end, which `verify` names as ``drift``.

        Below 0: letters that strangers have put into the stream, and no worker has come to yet; no violation.
        """
        return self.captured - (self.resolved + self.discarded + self.expired + self.lost_externally + self.letters)

    @property
    def clean(self) -> bool:
        """Whether every invariant holds. Letters that strangers deleted are counted, not a violation."""
        return not self.violations


async def stats_of(store: Store, *, replica: bool = False) -> QueueStats:
    """Return counts and totals of an open store: one bounded call a shard; with `replica`, to one of its replicas."""
    rows = [await browse.stats(shard, replica=replica) for shard in store.shards]

    def total(name: str) -> int:
        return sum(int(row.get(name) or 0) for row in rows)

    known = {name: total(name) for name in ("leased", "scheduled", "suspect", "held", "parked")}
    oldest = [int(str(row["oldest"]).split("-")[0]) for row in rows if row["oldest"]]
    due = [int(row["next_due"]) for row in rows if row["next_due"]]
    return QueueStats(
        queue=store.queue,
        shards=len(rows),
        open=total("open"),
        waiting=max(total("open") - sum(known.values()), 0),
        leased=known["leased"],
        scheduled=known["scheduled"],
        suspects=known["suspect"],
        held=known["held"],
        parked=known["parked"],
        error_groups=total("error_groups"),
        consumers=total("consumers"),
        totals={name: total("parked_total" if name == "parked" else name) for name in TOTALS},
        now_ms=max(int(row["now"]) for row in rows),
        oldest_ms=min(oldest, default=None),
        next_due_ms=min(due, default=None),
        by_shard=rows,
    )


async def verify(store: Store, *, on_progress: Callable[[float], None] | None = None) -> VerifyReport:
    """Check every invariant over the live queue of an open store, in bounded calls.

    `on_progress` hears after each of them how much is done: an estimate, from 0 to 1.
    """
    shards = list(store.shards)
    places = [_places(await browse.stats(shard)) for shard in shards]
    violations: list[Violation] = []
    for at, shard in enumerate(shards):
        async for part, checked in _verify(shard):
            violations += [Violation(*found) for found in part.violations]
            if not part.cursor and (part.drift > 0 or part.drift < -part.waiting):
                violations.append(Violation("drift", "", f"shard {shard.index}: {part.drift} letters"))
            if on_progress is not None:
                checked = min(checked, places[at]) if part.cursor else places[at]
                on_progress((sum(places[:at]) + checked) / sum(places))
    stats = await stats_of(store)
    return VerifyReport(
        violations,
        stats.open,
        *(
            stats.totals[name]
            for name in ("captured", "resolved", "discarded", "expired", "orphaned", "lost_externally")
        ),
    )


async def _verify(shard: Shard) -> AsyncGenerator[tuple[browse.Verified, int]]:
    """Yield the parts of a shard's check, each with the number of places that have been checked by then."""
    cursor, checked = b"", 0
    while cursor or not checked:
        part = await browse.verify(shard, cursor)
        cursor, checked = part.cursor, checked + PLACES_A_CALL
        yield part, checked


def _places(row: Mapping[str, int | str]) -> int:
    """Return about how many entries and rows of a shard there are to check."""
    rows = sum(int(row[name]) for name in ("scheduled", "suspect", "held", "parked"))
    # Each row has an entry, and most have a state and a history, too.
    return 4 * rows + 2 * int(row["leased"]) + 1
