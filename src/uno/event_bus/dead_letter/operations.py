"""Operators' verbs and reads over the whole queue: look, count, check, send back, remove."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from uno.event_bus.dead_letter.config import require_seconds
from uno.event_bus.dead_letter.errors import ConfigError, LetterNotFound, LetterStateConflict
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Answer, Seen, Shard
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.where import Where

__all__ = ["Operations", "QueueStats", "VerifyReport", "Violation"]

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
)
"""Totals of a queue since it was made; `parked` is how often, not how many are parked now."""

ROUNDS = 100
"""Looks at a letter that keeps changing, before its verb gives up; each runs the intake 500 letters further."""


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
    def clean(self) -> bool:
        """Whether every invariant holds. Letters that strangers deleted are counted, not a violation."""
        return not self.violations


class Operations:
    """The operators' side of a queue."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def _shard(self, letter_id: str) -> Shard:
        await self._store.open()
        shard = self._store.shard_of(letter_id)
        if shard is None:
            raise LetterNotFound(letter_id)
        return shard

    async def get(self, letter_id: str) -> Letter:
        """Return an open letter; raises `LetterNotFound`."""
        letter = await browse.find(await self._shard(letter_id), letter_id)
        if letter is None:
            raise LetterNotFound(letter_id)
        return letter

    async def letters(
        self, where: Where | Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> AsyncGenerator[Letter]:
        """Yield the open letters that match, shard by shard, oldest capture first.

        Letters that come or change meanwhile may be missed or shown as they were. Without `whole`, payload and
        traceback are left out.
        """
        conditions = Where.of(where).conditions()
        await self._store.open()
        for shard in list(self._store.shards):
            cursor = b"-"
            while cursor:
                page = await browse.scan(shard, cursor, whole=whole, where=conditions)
                cursor = page.cursor
                for letter in page.letters:
                    yield letter

    async def retry(self, letter_id: str, *, delay: float = 0.0) -> None:
        """Send a letter back to the workers, due after `delay` seconds; a parked one gets a new budget of retries.

        Raises `LetterNotFound`; `LetterStateConflict` when a worker has it.
        """
        delay_ms = int(require_seconds("delay", delay) * 1000)
        await self._operate("retry", letter_id, partial(Shard.reschedule, delay_ms=delay_ms))

    async def park(self, letter_id: str, why: str) -> None:
        """Stop the retries of a letter. Raises `LetterNotFound`; `LetterStateConflict` when leased or parked."""
        await self._operate("park", letter_id, partial(Shard.park, reason=_sound(why)))

    async def discard(self, letter_id: str, why: str) -> None:
        """Remove a letter for good, also one that a worker has. Raises `LetterNotFound`."""
        await self._operate("discard", letter_id, partial(Shard.discard, why=_sound(why)))

    async def _operate(
        self, verb: str, letter_id: str, act: Callable[[Shard, Sequence[Seen]], Awaitable[list[Answer]]]
    ) -> None:
        shard = await self._shard(letter_id)
        letter: Letter | None = None
        for _ in range(ROUNDS):
            letter = await self.get(letter_id)
            [answer] = await act(shard, [Seen(letter_id, letter.state, letter.since_ms)])
            if answer is Answer.OK:
                return
            if answer is Answer.GONE:
                raise LetterNotFound(letter_id)
            if answer is Answer.LEASED:
                raise LetterStateConflict(letter_id, verb, "leased", _MOVES[verb])
            if answer is Answer.CHANGED and letter.state.value not in _MOVES[verb]:
                break
        state = letter.state.value if letter else "changing"
        raise LetterStateConflict(letter_id, verb, state, _MOVES[verb])

    async def stats(self) -> QueueStats:
        """Return counts and totals: one bounded call a shard."""
        await self._store.open()
        rows = [await browse.stats(shard) for shard in self._store.shards]

        def total(name: str) -> int:
            return sum(int(row.get(name) or 0) for row in rows)

        known = {name: total(name) for name in ("leased", "scheduled", "suspect", "held", "parked")}
        oldest = [int(str(row["oldest"]).split("-")[0]) for row in rows if row["oldest"]]
        due = [int(row["next_due"]) for row in rows if row["next_due"]]
        return QueueStats(
            queue=self._store.queue,
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

    async def verify(self) -> VerifyReport:
        """Check every invariant over the live queue, in bounded calls."""
        await self._store.open()
        violations: list[Violation] = []
        for shard in self._store.shards:
            part = await browse.verify(shard)
            violations += [Violation(*found) for found in part.violations]
            while part.cursor:
                part = await browse.verify(shard, part.cursor)
                violations += [Violation(*found) for found in part.violations]
            if part.drift > 0 or part.drift < -part.waiting:
                violations.append(Violation("drift", "", f"shard {shard.index}: {part.drift} letters"))
        stats = await self.stats()
        return VerifyReport(
            violations,
            stats.open,
            *(
                stats.totals[name]
                for name in ("captured", "resolved", "discarded", "expired", "orphaned", "lost_externally")
            ),
        )


def _sound(why: str) -> str:
    try:
        why.encode()
    except UnicodeEncodeError:
        raise ConfigError("why has lone surrogates: allowed is a text that can be written as UTF-8") from None
    return why


_MOVES = {
    "retry": ("waiting", "scheduled", "suspect", "held", "parked"),
    "park": ("waiting", "scheduled", "suspect", "held"),
    "discard": ("waiting", "leased", "scheduled", "suspect", "held", "parked"),
}
"""States that a verb takes letters from."""
