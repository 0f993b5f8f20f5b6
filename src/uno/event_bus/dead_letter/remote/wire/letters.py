"""Letters on the wire: as they are shown, and how they are asked for."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from uno.event_bus.dead_letter.remote.wire.common import PAGE

__all__ = [
    "Attempt",
    "Filter",
    "LetterPage",
    "LetterQuery",
    "LetterRecord",
    "State",
    "Values",
]


class Attempt(Struct, omit_defaults=True):
    """One run of a handler on a letter."""

    started_ms: int
    worker: str = ""
    duration_s: float = 0.0
    error_type: str = ""
    message: str = ""


class LetterRecord(Struct, kw_only=True, omit_defaults=True):
    """A letter. Payload, traceback, headers and history only where it was asked for whole. Times: Unix time, ms."""

    id: str
    state: str
    type: str = ""
    event_id: str = ""
    subscription: str = ""
    reason: str = ""
    """Why it was captured."""
    settled_reason: str = ""
    """Why it was parked, or last settled without success."""
    error_type: str = ""
    error: str = ""
    fingerprint: str = ""
    captured_at_ms: int = 0
    failed_at_ms: int = 0
    not_before_ms: int = 0
    due_ms: int = 0
    since_ms: int = 0
    """When it was parked or held, or is due as a scheduled one; 0 in other states."""
    failures: int = 0
    crashes: int = 0
    releases: int = 0
    redrives: int = 0
    failures_at_redrive: int = 0
    crashes_at_redrive: int = 0
    caller_attempts: int = 0
    ordering_key: str = ""
    dedupe_key: str = ""
    version: int = 0
    content_type: str = ""
    encoding: str = ""
    traceback: str = ""
    headers: dict[str, Any] = {}
    history: list[Attempt] = []
    payload: Raw | UnsetType = UNSET
    """Where it is JSON on one line: as it was captured."""
    payload_base64: bytes | UnsetType = UNSET
    """Else."""


class LetterPage(Struct, omit_defaults=True):
    """Some letters, shard by shard, the oldest first."""

    letters: list[LetterRecord]
    cursor: str = ""
    """Names the next page; empty after the last one. A page may be empty and not the last."""


type Values = Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(min_length=1, max_length=100)]


type State = Literal["waiting", "leased", "scheduled", "suspect", "held", "parked"]


class Filter(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Letters whose fields have one of the values; different fields must all match, none matches every letter."""

    state: Annotated[list[State], Meta(min_length=1, max_length=6)] | UnsetType = UNSET
    type: Values | UnsetType = UNSET
    subscription: Values | UnsetType = UNSET
    reason: Values | UnsetType = UNSET
    error_type: Values | UnsetType = UNSET
    fingerprint: Values | UnsetType = UNSET
    event_id: Values | UnsetType = UNSET


class LetterQuery(Filter, omit_defaults=True):
    """Parameters of the list of letters. Those of the filter may be given several times: any of the values matches."""

    limit: Annotated[int, Meta(ge=1, le=PAGE)] = 100
    """Letters of a page at most."""
    cursor: Annotated[str, Meta(pattern="^([0-9]{1,4}:(-|[0-9]{1,20}-[0-9]{1,20}))?$")] = ""
    """Of the page before; empty: the first page."""
    whole: bool = False
    """With payload, traceback, headers and history."""
