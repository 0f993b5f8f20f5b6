"""What the scripts take and give, as values: outcomes and what was seen go in; verdicts, answers, letters come out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from uno.event_bus.dead_letter.letter import Counters, Letter, LetterState, NewLetter, Verb
from uno.event_bus.dead_letter.store.node import Word

__all__ = [
    "LARGEST_BATCH",
    "Answer",
    "Extended",
    "Outcome",
    "Reclaimed",
    "Repaired",
    "Seen",
    "Taken",
    "Verdict",
]

LARGEST_BATCH: Final = 1000
"""Letters that one call may name: Lua's `unpack` and the length of a script bound it."""


class Verdict(StrEnum):
    """What `settle` says of an outcome."""

    OK = "OK"
    LOST = "LOST"
    """The lease is another's, or over: nothing changed."""
    GONE = "GONE"
    """No such letter: nothing changed."""


VERDICTS: Final = {verdict.value.encode(): verdict for verdict in Verdict}


class Answer(StrEnum):
    """What an operator's verb says of a letter."""

    OK = "OK"
    CHANGED = "CHANGED"
    """It is not as the caller saw it."""
    LEASED = "LEASED"
    """A worker has it."""
    AHEAD = "AHEAD"
    """The intake has not come to it: call again."""
    GONE = "GONE"


class Outcome(NamedTuple):
    """The end of one lease."""

    letter_id: str
    token: int
    verb: Verb
    delay_ms: int = 0
    """For `retry` and `release`."""
    failed: bool = False
    """The handler ran and failed: counts against `max_retries`."""
    reason: str = ""
    history: bytes = b""
    """Replaces the letter's history; empty: it stays as it is."""
    fingerprint: str = ""
    """Of the letter, so that its error group is counted down."""


class Seen(NamedTuple):
    """A letter as an operator saw it."""

    letter_id: str
    state: LetterState
    since_ms: int


@dataclass(slots=True)
class Taken:
    """The reply of `take`."""

    letters: list[Letter]
    now_ms: int
    mark: bytes
    """Stream id up to which letters were taken in."""
    more: bool
    """More are due or new: take again at once."""
    next_due_ms: int | None
    suspect_due_ms: int | None
    """Due time of the suspect that has waited longest."""
    remade: bool
    """The consumer group was missing: `repair` should run at once."""
    suspect: bool
    """The one letter must run alone."""


class Extended(NamedTuple):
    """The reply of `extend`."""

    lost: list[str]
    forgotten: list[tuple[str, int]]
    """Id and token of leases of this consumer that the caller did not name."""


class Reclaimed(NamedTuple):
    """The reply of `reclaim`; the cursor is ``0-0`` when the walk is at its end."""

    cursor: bytes
    suspects: list[str]
    parked: list[str]
    now_ms: int = 0
    lead_ms: int = 0
    """By how much the shard's time is ahead of its server's, whose clock was set back."""


@dataclass(slots=True)
class Repaired:
    """The reply of `repair`; the cursor is empty when the walk is at its end."""

    cursor: bytes
    orphaned: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    rows_removed: int = 0
    remade: bool = False
    """The consumer group was missing: the whole shard should be looked at, at once."""


LATEST_MS: Final = 10**15
"""A due time that a stranger set to infinity is shown as this one, ms."""


def optional_ms(value: bytes) -> int | None:
    """Return a time that a script answered; None when there is none."""
    return int(min(float(value), LATEST_MS)) if value else None


def counters_of(row: Sequence[Any]) -> Counters:
    """Return the counters that a script answered; none were kept when the row is empty."""
    if not row:
        return Counters()
    failures, crashes, releases, redrives, failures_then, crashes_then, reason = row
    return Counters(
        failures, crashes, releases, redrives, failures_then, crashes_then, reason.decode("utf-8", "replace")
    )


def arguments_of(letters: Iterable[NewLetter]) -> list[Word]:
    """Return the arguments of `add` for these letters."""
    args: list[Word] = []
    for new in letters:
        args += (
            new.capture_key,
            new.delay_ms,
            new.event_id,
            new.type,
            new.subscription,
            new.reason,
            new.error_type,
            new.error,
            new.traceback,
            new.fingerprint,
            "" if new.failed_at_ms is None else new.failed_at_ms,
            new.attempts,
            new.ordering_key,
            new.dedupe_key,
            new.content_type,
            new.encoding,
            new.payload,
            new.headers,
        )
    return args
