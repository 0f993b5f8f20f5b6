"""The vocabulary of the engine: letters, their states, reasons, counters, history and leases.

It stands below every layer, so each may use it. The words are those of the glossary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from time import monotonic
from typing import Any, Final, NamedTuple, Self

import msgspec

from uno.event_bus.dead_letter.history import History

__all__ = [
    "FIELDS",
    "WIRE_VERSION",
    "Counters",
    "DeadLetterReason",
    "Lease",
    "Letter",
    "LetterState",
    "NewLetter",
    "Verb",
]

WIRE_VERSION: Final = 1
"""The highest wire format this process can read; an entry with a higher ``v`` is released, not run."""

FIELDS: Final = (
    "v",
    "event_id",
    "type",
    "subscription",
    "reason",
    "error_type",
    "error",
    "traceback",
    "fingerprint",
    "failed_at",
    "attempts",
    "not_before",
    "ordering_key",
    "dedupe_key",
    "content_type",
    "encoding",
    "payload",
    "headers",
)
"""Fields of a stream entry, in the one order in which `add` writes them (a stream stores repeated names once)."""


class DeadLetterReason(StrEnum):
    """Why an event became a letter, or why a letter was parked."""

    HANDLER_FAILED = "handler_failed"
    TIMEOUT = "timeout"
    INVALID_EVENT = "invalid_event"
    UNHANDLED = "unhandled"
    STALLED = "stalled"
    UNKNOWN = "unknown"


class LetterState(StrEnum):
    """Where a letter is recorded; a letter is in exactly one state."""

    WAITING = "waiting"
    LEASED = "leased"
    SCHEDULED = "scheduled"
    SUSPECT = "suspect"
    """Scheduled to run alone, because a lease on it ran out."""
    HELD = "held"
    PARKED = "parked"


class Verb(StrEnum):
    """How a lease ends."""

    RESOLVE = "resolve"
    RETRY = "retry"
    PARK = "park"
    RELEASE = "release"
    DISCARD = "discard"


class Counters(NamedTuple):
    """What has happened to a letter; each is counted apart, because mixing them gives "attempt 4 of 3"."""

    failures: int = 0
    """Times that a handler ran and failed."""
    crashes: int = 0
    """Leases that ran out: the worker died, stalled, or lost touch."""
    releases: int = 0
    """Times delivered and given back without being started."""
    redrives: int = 0
    """Times that an operator sent it back from parked."""
    failures_at_redrive: int = 0
    """`failures` when the last redrive happened; retries are counted from there."""
    crashes_at_redrive: int = 0
    """`crashes` when the last redrive happened."""
    reason: str = ""
    """Why it was parked or last settled without success."""

    @property
    def failures_since_redrive(self) -> int:
        """What `max_retries` limits."""
        return self.failures - self.failures_at_redrive


@dataclass(slots=True)
class NewLetter:
    """A letter on its way into the store; texts are stored as UTF-8."""

    event_id: str
    type: str
    payload: bytes
    content_type: str = "application/json"
    subscription: str = ""
    reason: str = DeadLetterReason.UNKNOWN.value
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    fingerprint: str = ""
    failed_at_ms: int | None = None
    """Unix time, ms; None: the server's time of the capture."""
    attempts: int = 0
    """The caller's own count of attempts before the capture; information only."""
    delay_ms: int = 0
    """Not run before this long after the capture, by the server's clock."""
    ordering_key: str = ""
    dedupe_key: str = ""
    encoding: str = ""
    headers: bytes = b""
    """A JSON object, or empty."""
    has_own_id: bool = False
    """The engine made the event id: no other call can name it."""

    @property
    def movable(self) -> bool:
        """Whether any shard may have it: nobody will ask for it by its keys."""
        return self.has_own_id and not self.dedupe_key and not self.ordering_key

    @property
    def capture_key(self) -> str:
        """What makes a repeated capture the same letter."""
        return self.dedupe_key or f"{self.event_id}\0{self.subscription}"


@dataclass(slots=True)
class Lease:
    """A worker's right to settle one letter: (consumer, token), bounded in time."""

    consumer: str
    token: int
    expires_at: float
    """By this process's monotonic clock, seconds; the heartbeat moves it on."""
    lost: bool = field(default=False)
    """Set when the store said that the lease is another's, or over."""

    def still_mine(self) -> bool:
        """Answer whether this process may still act for the letter, as far as it can know without asking."""
        return not self.lost and monotonic() < self.expires_at


_NO_COUNTERS: Final = Counters()

_PLACE: Final = {name.encode(): place for place, name in enumerate(FIELDS)}
_TYPE, _SUBSCRIPTION, _PAYLOAD, _CONTENT_TYPE, _ENCODING, _HEADERS = (
    _PLACE[name] for name in (b"type", b"subscription", b"payload", b"content_type", b"encoding", b"headers")
)


class Letter:
    """One failed event with all that is needed to try it again.

    Fields are decoded when they are asked for: a handler that only wants the event pays for nothing else.
    Text that is not UTF-8 is shown with replacement characters; the stored bytes stay as they are.
    """

    __slots__ = ("__dict__", "_due_ms", "counters", "id", "lease", "packed_history", "since_ms", "state", "values")

    def __init__(
        self,
        id: str,
        values: Sequence[bytes | None],
        *,
        state: LetterState,
        counters: Counters = _NO_COUNTERS,
        packed_history: bytes = b"",
        since_ms: int = 0,
        due_ms: int = 0,
        lease: Lease | None = None,
    ) -> None:
        self.id = id
        self.values = values
        """Of the wire format's fields, in the order of `FIELDS`; None where the entry has no such field."""
        self.state = state
        self.counters = counters
        self.packed_history = packed_history
        self.since_ms = since_ms
        """Score of the state's index: due, held-at or parked-at, ms; 0 where the state has none."""
        self._due_ms = due_ms
        self.lease = lease

    @classmethod
    def from_fields(cls, id: str, fields: Mapping[bytes, bytes], **known: Any) -> Self:
        """Return the letter of an entry's fields by name; unknown ones are left out. Arguments as of the class."""
        return cls(id, [fields.get(name) for name in _PLACE], **known)

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The fields of the wire format that the entry has, by name."""
        return {name: value for name, value in zip(_PLACE, self.values, strict=True) if value is not None}

    @property
    def route(self) -> tuple[bytes | None, bytes | None]:
        """Type and subscription as they are stored: what a handler is chosen by."""
        return self.values[_TYPE], self.values[_SUBSCRIPTION]

    def __repr__(self) -> str:
        return f"Letter({self.id}, type={self.type!r}, subscription={self.subscription!r}, state={self.state.value})"

    def _text(self, name: bytes) -> str:
        return (self.values[_PLACE[name]] or b"").decode("utf-8", "replace")

    def _int(self, name: bytes) -> int:
        value = self.values[_PLACE[name]] or b""
        return int(value) if len(value) <= 19 and value.isascii() and value.isdigit() else 0

    @property
    def version(self) -> int:
        """Wire format of the entry; 0 for a capture that was not written by this engine."""
        return self._int(b"v")

    @property
    def attempt(self) -> int:
        """Number of the attempt that is running or comes next, from 1."""
        return self.counters.failures + 1

    @property
    def event_id(self) -> str:
        """Id of the event, the caller's or the engine's."""
        return self._text(b"event_id")

    @property
    def type(self) -> str:
        """Type of the event, by which handlers are chosen."""
        return self._text(b"type")

    @property
    def subscription(self) -> str:
        """The subscription that failed; empty when the whole event did."""
        return self._text(b"subscription")

    @property
    def reason(self) -> str:
        """Why the letter was captured; why it was parked is ``counters.reason``."""
        return self._text(b"reason")

    @property
    def error_type(self) -> str:
        """Qualified class name of the first failure's exception."""
        return self._text(b"error_type")

    @property
    def error(self) -> str:
        """Message of the first failure."""
        return self._text(b"error")

    @property
    def traceback(self) -> str:
        """Traceback of the first failure."""
        return self._text(b"traceback")

    @property
    def fingerprint(self) -> str:
        """What failures with the same cause share."""
        return self._text(b"fingerprint")

    @property
    def failed_at_ms(self) -> int:
        """When the event failed, Unix time, ms."""
        return self._int(b"failed_at")

    @property
    def captured_at_ms(self) -> int:
        """When the letter was captured, Unix time by the server's clock, ms: it is part of the id."""
        return int(self.id.split("-")[1])

    @property
    def not_before_ms(self) -> int:
        """Not run before, Unix time by the server's clock, ms."""
        return self._int(b"not_before")

    @property
    def due_ms(self) -> int:
        """When a scheduled, suspect or new letter is due, or was when it was taken; by the server's clock, ms."""
        return self._due_ms or self.not_before_ms or self.captured_at_ms

    @due_ms.setter
    def due_ms(self, ms: int) -> None:
        self._due_ms = ms

    @property
    def ordering_key(self) -> str:
        """Letters that share it share a shard."""
        return self._text(b"ordering_key")

    @property
    def dedupe_key(self) -> str:
        """The caller's capture key."""
        return self._text(b"dedupe_key")

    @property
    def content_type(self) -> str:
        """Media type of `payload`."""
        return self._text(b"content_type")

    @property
    def encoding(self) -> str:
        """How `payload` is encoded: empty (as it is), ``zstd`` or ``enc:<key id>``."""
        return self._text(b"encoding")

    @property
    def payload(self) -> bytes:
        """The event's bytes, exactly as they were captured."""
        return self.values[_PAYLOAD] or b""

    @property
    def has_payload(self) -> bool:
        """Whether the entry has a payload at all; an empty one is one."""
        return self.values[_PAYLOAD] is not None

    @property
    def is_encoded(self) -> bool:
        """Whether the payload is compressed or encrypted, which this process cannot undo yet."""
        return bool(self.values[_ENCODING])

    @property
    def is_plain_json(self) -> bool:
        """Whether the payload is JSON, without a look at parameters of its content type."""
        return self.values[_CONTENT_TYPE] == b"application/json"

    @property
    def caller_attempts(self) -> int:
        """Attempts that the caller counted before the capture; information only."""
        return self._int(b"attempts")

    @property
    def packed_headers(self) -> bytes:
        """The headers as they are stored; empty when missing."""
        return self.values[_HEADERS] or b""

    @cached_property
    def headers(self) -> dict[str, Any]:
        """Trace context, correlation and the caller's metadata; empty when missing or not a JSON object."""
        try:
            found = msgspec.json.decode(self.packed_headers or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def history(self) -> History:
        """The last 20 attempts."""
        return History.unpack(self.packed_history)
