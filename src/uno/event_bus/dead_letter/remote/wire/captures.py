"""Captures on the wire: events that come in, and what became of each."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from uno.event_bus.dead_letter.remote.wire.common import BATCH, Ms, Problem, Text, UnixMs

__all__ = [
    "Batch",
    "Captured",
    "Event",
    "Key",
    "Keys",
    "Known",
    "Result",
    "Results",
]


class Event(Struct, kw_only=True, omit_defaults=True):
    """One event that failed, and its failure. The payload is given in one of two ways, and its bytes are kept."""

    type: Annotated[str, Meta(min_length=1, max_length=65_536)]
    payload: Raw | UnsetType = UNSET
    """Any JSON value: kept as it stands in the request."""
    payload_base64: bytes | UnsetType = UNSET
    """Any bytes."""
    content_type: Text = "application/json"
    event_id: Text = ""
    """Repeating a request with the same one, and the same subscription, captures nothing; empty: one is made."""
    subscription: Text = ""
    reason: Text = ""
    """Empty: what the error tells."""
    error_type: Text = ""
    error: Text = ""
    traceback: Text = ""
    fingerprint: Annotated[str, Meta(max_length=256)] = ""
    """Empty: made of type, error class and message."""
    failed_at_ms: UnixMs | None = None
    """None: now."""
    attempts: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    """Attempts before the capture; information, not counted against the queue's limit."""
    delay_ms: Ms | None = None
    """Until the first retry; None: the queue's first delay, 0: due now."""
    ordering_key: Text = ""
    dedupe_key: Text = ""
    """Takes the place of `event_id` in telling repeats."""
    headers: dict[str, Any] = {}
    """Trace context, correlation, and whatever else is to be kept."""


class Batch(Struct):
    """Events to capture."""

    events: Annotated[list[Event], Meta(min_length=1, max_length=BATCH)]


class Captured(Struct):
    """A letter that was captured, or had been before."""

    id: str


class Result(Struct, omit_defaults=True):
    """What became of one event of several: its letter's id, or why it was not captured."""

    id: str = ""
    problem: Problem | None = None


class Results(Struct):
    """By the events' positions."""

    captured: int
    results: list[Result]


class Key(Struct, kw_only=True, omit_defaults=True):
    """A letter that its producer has kept for a while, and may have captured already."""

    event_id: str = ""
    subscription: str = ""
    dedupe_key: str = ""
    ordering_key: str = ""
    kept_since_ms: UnixMs
    """When its producer failed to capture it, by the producer's clock."""
    tried: bool = True
    """It may have been captured at any time since; False: only by an earlier call with the same key."""


class Keys(Struct):
    """Letters to look for in the queue: what is older than its dedupe window is not told by a repeated capture."""

    keys: Annotated[list[Key], Meta(min_length=1, max_length=BATCH)]
    now_ms: UnixMs
    """The producer's clock."""


class Known(Struct):
    """Which of them are there: positions in the request."""

    positions: list[int]
