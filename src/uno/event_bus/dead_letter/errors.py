"""What can go wrong, as a tree of exceptions.

::

    DeadLetterError
    ├── ConfigError            a setting is wrong or missing
    ├── Disabled               the queue is switched off
    ├── QueueFull              the queue, or the server's memory, has no room
    ├── PayloadTooLarge        an event's bytes are over the limit
    ├── InvalidEvent           an event cannot be serialised
    ├── PartialCapture         some letters of an `add_many` were not captured
    ├── LetterNotFound         no open letter has this id
    ├── QueueNotFound          no queue has this name
    ├── LetterStateConflict    the letter's state does not allow the verb
    ├── LeaseLost              the lease of the running attempt is another's, or over
    ├── LayoutMismatch         this process and the queue disagree on its layout
    ├── NotReplicated          written, but no replica has confirmed it
    ├── StoreUnavailable       Redis did not answer, or answered that it cannot now
    │   └── SpoolFull          … and the spool, where letters wait for it, has its bytes
    ├── StoreError             Redis refused a command for good
    ├── BackupInvalid          a backup is damaged or not ours
    └── PermissionDenied       the caller's role, or its Redis user, may not do that

Each class has a stable ``code`` (CLI text, HTTP problem details and metrics reuse it), keeps its facts as
attributes, and builds its one-line message from them: what was wrong, the value, what is allowed, and what
happened to the letter. No message ever holds a payload or a password.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "BackupInvalid",
    "ConfigError",
    "DeadLetterError",
    "Disabled",
    "InvalidEvent",
    "LayoutMismatch",
    "LeaseLost",
    "LetterNotFound",
    "LetterStateConflict",
    "NotReplicated",
    "PartialCapture",
    "PayloadTooLarge",
    "PermissionDenied",
    "QueueFull",
    "QueueNotFound",
    "SpoolFull",
    "StoreError",
    "StoreUnavailable",
]


class DeadLetterError(Exception):
    """Base of every error that the engine raises on purpose."""

    code: ClassVar[str] = "dead_letter_error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by message and facts: the constructors take facts, `Exception` would pass the message."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[DeadLetterError], args: tuple[Any, ...], facts: dict[str, Any]) -> DeadLetterError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class ConfigError(DeadLetterError):
    """Raised when a setting is wrong or missing; the message names it, its value and what is allowed."""

    code = "config_invalid"


class Disabled(DeadLetterError):
    """Raised when `add` is called while ``DLQ_ENABLED=false``; the event was not captured."""

    code = "disabled"

    def __init__(self) -> None:
        super().__init__("the dead-letter queue is switched off (DLQ_ENABLED=false): the event was not captured")


class QueueFull(DeadLetterError):
    """Raised when the queue holds its maximum of letters, or the server has no memory left.

    Nothing was captured and nothing was trimmed to make room. A letter has one shard that it may go to: it is
    refused when that one has its share of ``max_queue_size`` and a tenth, whatever the others hold.
    """

    code = "queue_full"

    def __init__(self, queue: str, limit: int | None = None, shards: int = 1) -> None:
        self.queue = queue
        self.limit = limit
        self.shards = shards
        why = "the server is out of memory" if limit is None else f"max_queue_size is {limit} letters"
        if limit is not None and shards > 1:
            why = f"the letter's shard, one of {shards}, has its share of max_queue_size, which is {limit} letters"
        what = "nothing was written" if limit is None else "the event was not captured"
        super().__init__(f"queue {queue!r} is full ({why}): {what}")


class PayloadTooLarge(DeadLetterError):
    """Raised before any I/O when an event's bytes, or its headers, are over ``max_payload_bytes``."""

    code = "payload_too_large"

    def __init__(self, size: int, limit: int, part: str = "payload") -> None:
        self.size = size
        self.limit = limit
        self.part = part
        super().__init__(f"{part}: {size} bytes, max_payload_bytes is {limit}: the event was not captured")


class InvalidEvent(DeadLetterError):
    """Raised when an event cannot be serialised, or its bytes cannot be decoded for the handler."""

    code = "invalid_event"

    def __init__(self, event_type: str, why: str, *, field: str | None = None) -> None:
        self.event_type = event_type
        self.field = field
        self.why = why
        where = f" at {field}" if field else ""
        super().__init__(f"event of type {event_type!r}{where}: {why}")


class PartialCapture(DeadLetterError):
    """Raised when some letters of an `add_many` were not captured.

    ``ids`` has the id of each captured event by its position, ``errors`` the error of each other one.
    Repeating only the failed positions is safe, unless an error leaves the outcome unknown (`StoreUnavailable`
    that is not ``certain``). Repeating those, or all, is safe only if the first call named ``event_ids`` and the
    repeat names the same within ``dedupe_window``: ids that the engine makes up are new in each call.
    """

    code = "partial_capture"

    def __init__(self, ids: Mapping[int, str], errors: Mapping[int, DeadLetterError]) -> None:
        self.ids = dict(ids)
        self.errors = dict(errors)
        position = min(self.errors)
        super().__init__(
            f"{len(self.ids)} of {len(self.ids) + len(self.errors)} events were captured; "
            f"position {position}: {self.errors[position]}"
        )


class QueueNotFound(DeadLetterError):
    """Raised when a queue that is only to be read, or worked off, has never been made."""

    code = "queue_not_found"

    def __init__(self, queue: str) -> None:
        self.queue = queue
        super().__init__(f"there is no queue {queue!r}: nothing was ever captured in it, and no worker has served it")


class LetterNotFound(DeadLetterError):
    """Raised when no open letter has this id: it was settled, expired, or never existed."""

    code = "letter_not_found"

    def __init__(self, letter_id: str) -> None:
        self.letter_id = letter_id
        super().__init__(f"no open letter has the id {letter_id!r}; ids look like 2-1718000000000-0")


class LetterStateConflict(DeadLetterError):
    """Raised when a verb does not fit the letter's state, or the state changed meanwhile."""

    code = "letter_state_conflict"

    def __init__(self, letter_id: str, verb: str, state: str, allowed: Sequence[str] = ()) -> None:
        self.letter_id = letter_id
        self.verb = verb
        self.state = state
        self.allowed = tuple(allowed)
        may = f"; {verb} takes letters that are {' or '.join(self.allowed)}" if self.allowed else ""
        if state in self.allowed:
            may = f", and {verb} takes such letters, but it changed meanwhile; call again"
        super().__init__(f"letter {letter_id} is {state}{may}; it was left as it is")


class LeaseLost(DeadLetterError):
    """Raised into a handler whose lease ran out or was taken; what it does from now on settles nothing."""

    code = "lease_lost"

    def __init__(self, letter_id: str) -> None:
        self.letter_id = letter_id
        super().__init__(f"the lease of letter {letter_id} is lost: another worker may run it now")


class LayoutMismatch(DeadLetterError):
    """Raised when this process and the queue disagree on format, shard count or script protocol."""

    code = "layout_mismatch"

    def __init__(self, queue: str, what: str, ours: int, theirs: int, remedy: str) -> None:
        self.queue = queue
        self.what = what
        self.ours = ours
        self.theirs = theirs
        super().__init__(f"queue {queue!r} has {what} {theirs}, this process {ours}: {remedy}; nothing was written")


class NotReplicated(DeadLetterError):
    """Raised when a durable capture was written but not confirmed by the replicas, or disks, that were asked for.

    The outcome is unknown: it is there, unless a failover loses it. Repeating the call with the same event id is safe.
    """

    code = "not_replicated"

    def __init__(self, letter_id: str, wanted: int, got: int, of: str = "replicas") -> None:
        self.letter_id = letter_id
        self.wanted = wanted
        self.got = got
        super().__init__(f"letter {letter_id}: {got} of {wanted} {of} confirmed it; repeat with the same event id")


class StoreUnavailable(DeadLetterError):
    """Raised when Redis did not answer in time, or answered that it cannot serve now; worth another try.

    Of a remote queue: when the service did not, or says that Redis has not.

    So is a TLS handshake that failed, whatever the reason; and once a queue is open, a user or a password that Redis
    refuses, and a file of theirs that cannot be read: it may be rotated just now.

    ``certain`` is True when the command was certainly not executed: then any repeat is safe. Otherwise it may
    have been: repeating a capture is safe only if the first call named an event id (or ``dedupe_key``) and the
    repeat names the same within ``dedupe_window``; an id that the engine made up is new in each call.
    """

    code = "store_unavailable"

    def __init__(self, why: str, *, certain: bool = False) -> None:
        self.why = why
        self.certain = certain
        # The reason begins with a service's URL where it is that who did not answer.
        who = "the service" if why.startswith(("http://", "https://")) else "Redis"
        super().__init__(f"{who} is unavailable ({why}): {'nothing was written' if certain else 'outcome unknown'}")

    def unsure(self) -> "StoreUnavailable":
        """Return the same error of a call of which an earlier try may have run."""
        return StoreUnavailable(self.why)


class SpoolFull(StoreUnavailable):
    """Raised when a letter has to wait for Redis, and the spool holds ``spool_max_bytes``; nothing makes room there.

    ``certain`` is True, and the event not captured, unless Redis had been asked first and did not answer.
    """

    code = "spool_full"

    def __init__(self, why: str, directory: str, limit: int, *, certain: bool = True) -> None:
        self.directory = directory
        self.limit = limit
        super().__init__(f"{why}; spool {directory} is full: spool_max_bytes is {limit}", certain=certain)


class StoreError(DeadLetterError):
    """Raised when Redis refused a command for good: trying again does not help.

    A key of another type, an error inside a script, a server that lacks what is asked of it, or a bug.
    """

    code = "store_error"

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"Redis refused a command ({why}): trying again does not help")


class BackupInvalid(DeadLetterError):
    """Raised when a backup's format, checksum or order is wrong; nothing was restored from it."""

    code = "backup_invalid"


class PermissionDenied(DeadLetterError):
    """Raised when the caller's role does not allow the verb, or the Redis user lacks the right to a command."""

    code = "permission_denied"
