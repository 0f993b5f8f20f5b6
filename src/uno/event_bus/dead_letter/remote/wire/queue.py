"""The queue on the wire: what it holds, who works on it, whether its books add up, and what operators did."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from uno.event_bus.dead_letter.remote.wire.common import PAGE

__all__ = [
    "AuditPage",
    "AuditQuery",
    "AuditRecord",
    "Finding",
    "Health",
    "QueueInfo",
    "Reshard",
    "Spool",
    "Stats",
    "Verified",
    "Violation",
    "Worker",
    "Workers",
]


class QueueInfo(Struct):
    """What a client has to know of the queue."""

    queue: str
    shards: int
    dedupe_window_s: float
    max_payload_bytes: int
    max_queue_size: int


class Spool(Struct):
    """What waits on a machine to come in: see `SpoolStats`."""

    directory: str
    bytes: int
    letters: int
    oldest_ms: int | None
    max_bytes: int


class Stats(Struct):
    """What a queue holds now and has done so far: see `QueueStats`."""

    queue: str
    shards: int
    open: int
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
    oldest_ms: int | None
    next_due_ms: int | None
    by_shard: list[dict[str, Any]]
    spool: Spool | None = None
    """Of the service's machine."""


class Violation(Struct):
    """An invariant that a letter breaks: see `books.Violation`."""

    kind: str
    letter_id: str
    where: str


class Verified(Struct):
    """What `verify` found: the invariants, and the books."""

    clean: bool
    violations: list[Violation]
    letters: int
    captured: int
    resolved: int
    discarded: int
    expired: int
    orphaned: int
    lost_externally: int


class Worker(Struct):
    """What a worker tells of itself: see `WorkerInfo`."""

    worker: str
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    concurrency: int = 0
    shards: tuple[int, ...] = ()
    held: int = 0


class Workers(Struct):
    """Those that live."""

    workers: list[Worker]


class Finding(Struct):
    """One thing that was looked at."""

    check: str
    ok: bool
    detail: str


class Health(Struct):
    """Whether the queue is fit for work: every finding is ok."""

    healthy: bool
    checks: list[Finding]


class Reshard(Struct):
    """Give the queue more shards: a power of two above the present count."""

    shards: Annotated[int, Meta(ge=1, le=4096)]


class AuditRecord(Struct, kw_only=True, omit_defaults=True):
    """What somebody did, or was about to do: the fields of `store.audit.AuditEntry`."""

    id: str
    """``<ms>-<seq>``, by the server's clock."""
    call: str = ""
    """Of one call of a verb: what its intent and its outcome share."""
    phase: str
    """``intent``, before anything is done, or ``outcome``."""
    request_id: str
    who: str
    verb: str
    which: str = ""
    """JSON, at most 4 KiB: ``{"ids": […]}``, ``{"where": {…}}`` or ``{"shards": …}``; ``"left_out"``: how many more."""
    count: int | None = None
    """Letters that were named by id; None where a filter names them."""
    why: str = ""
    delay_ms: int = 0
    """Of a retry: due so much later."""
    outcome: str = ""
    """``done``, ``cancelled``, or the code of the error that ended it; empty for an intent."""
    done: int = 0
    changed: int = 0
    leased: int = 0
    not_found: int = 0
    """What became of the letters, as of `BulkResult`."""


class AuditQuery(Struct, omit_defaults=True):
    """Parameters of the audit stream."""

    limit: Annotated[int, Meta(ge=1, le=PAGE)] = 100
    """Records of a page at most."""
    cursor: Annotated[str, Meta(max_length=64)] = ""
    """Of the page before; empty: the newest records."""


class AuditPage(Struct, omit_defaults=True):
    """The newest first."""

    records: list[AuditRecord]
    cursor: str = ""
