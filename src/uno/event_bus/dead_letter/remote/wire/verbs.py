"""Operators' verbs on the wire, on one letter and on many."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from uno.event_bus.dead_letter.remote.wire.common import MOST_IDS, Ms, Problem, Text
from uno.event_bus.dead_letter.remote.wire.letters import Filter
from uno.event_bus.dead_letter.remote.wire.queue import Verified

__all__ = [
    "Answers",
    "BulkResult",
    "Discard",
    "DiscardMany",
    "Ids",
    "OneAnswer",
    "Park",
    "Retry",
    "RetryMany",
    "Settled",
]


class Retry(Struct, omit_defaults=True):
    """Send a letter back to the workers."""

    delay_ms: Ms = 0


class Park(Struct):
    """Stop the retries of a letter."""

    why: Annotated[str, Meta(max_length=1024)]


class Discard(Struct):
    """Remove a letter for good."""

    why: Annotated[str, Meta(max_length=1024)]


class Settled(Struct):
    """A verb was done to a letter."""

    id: str
    verb: str


type Ids = Annotated[list[Text], Meta(min_length=1, max_length=MOST_IDS)]


class RetryMany(Struct, kw_only=True, omit_defaults=True):
    """Send letters back: those of `ids`, or those that `where` matches (``{}``: every one); one of the two."""

    ids: Ids | UnsetType = UNSET
    where: Filter | UnsetType = UNSET
    delay_ms: Ms = 0
    dry_run: bool = False


class DiscardMany(Struct, kw_only=True, omit_defaults=True):
    """Remove letters for good; which ones: as of `RetryMany`."""

    ids: Ids | UnsetType = UNSET
    where: Filter | UnsetType = UNSET
    why: Annotated[str, Meta(max_length=1024)]
    dry_run: bool = False


class BulkResult(Struct, omit_defaults=True):
    """What a verb did to many letters: see `bulk.BulkReport`."""

    queue: str
    done: int = 0
    changed: int = 0
    leased: int = 0
    not_found: int = 0
    dry_run: bool = False
    answers: dict[str, str] = {}
    """Id → ``OK``, ``CHANGED``, ``LEASED`` or ``GONE``, where ids were named."""


class OneAnswer(Struct, omit_defaults=True):
    """What a verb did to one letter of many."""

    id: str
    answer: str
    problem: Problem | None = None


class Answers(Struct, omit_defaults=True):
    """A line of a reply in NDJSON to a verb on many letters, or to `verify`: each has one of these fields, and the
    last one `report`, `verified` or `problem`. A reply that ends without is cut off. A stream of letters that cannot be
    brought to its end has such a last line, too, with `problem`. Readers pass over empty lines.
    """

    answers: list[OneAnswer] = []
    progress: float | None = None
    """From 0 to 1; also sent while nothing else is, so that no proxy takes the connection for dead."""
    report: BulkResult | None = None
    verified: Verified | None = None
    problem: Problem | None = None
