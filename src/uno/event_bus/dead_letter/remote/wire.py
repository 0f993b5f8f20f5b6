"""What goes over the wire between a service and those who ask it: one struct for each body, both ways.

The service's description (OpenAPI) is made of these, and the remote queue speaks them, so the two cannot differ. Names
carry their units. Fields are only added, each with a default; readers pass over what they do not know.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

__all__ = [
    "BATCH",
    "MOST_IDS",
    "NDJSON",
    "PAGE",
    "PREFIX",
    "PROBLEM",
    "QUEUE_HEADER",
    "REQUEST_HEADER",
    "Answers",
    "Attempt",
    "AuditPage",
    "AuditQuery",
    "AuditRecord",
    "Batch",
    "BulkResult",
    "Captured",
    "Discard",
    "DiscardMany",
    "Event",
    "Filter",
    "Finding",
    "Health",
    "Key",
    "Keys",
    "Known",
    "LetterPage",
    "LetterQuery",
    "LetterRecord",
    "OneAnswer",
    "Park",
    "Problem",
    "QueueInfo",
    "Reshard",
    "Result",
    "Results",
    "Retry",
    "RetryMany",
    "Settled",
    "Spool",
    "Stats",
    "Verified",
    "Violation",
    "Worker",
    "Workers",
]

PREFIX: Final = "/v1"
NDJSON: Final = "application/x-ndjson"
PROBLEM: Final = "application/problem+json"

BATCH: Final = 1000
"""Most events of one request."""

PAGE: Final = 1000
"""Most letters of one page."""

MOST_IDS: Final = 10_000
"""Most letters that one request names by their ids; a filter may match any number."""

QUEUE_HEADER: Final = "dlq-queue"
"""Request header: the queue that is meant. A service of another one refuses, before anything is done."""

REQUEST_HEADER: Final = "x-request-id"
"""Of a request, if it names itself, and of every reply: what log lines and the audit stream call it by."""

type Text = Annotated[str, Meta(max_length=65_536)]
type Ms = Annotated[int, Meta(ge=0, le=3_153_600_000_000)]
"""A duration, ms; at most a hundred years."""

type UnixMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
"""A moment, Unix time, ms; until the year 9999."""


class Problem(Struct, omit_defaults=True):
    """What went wrong (RFC 9457). `code` is stable, `detail` is one line for people, `facts` are those of the error."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str = ""
    facts: dict[str, Any] = {}


# --- capture ---------------------------------------------------------------------------------------------


class Event(Struct, kw_only=True, omit_defaults=True):
    """One event that failed, and its failure. The payload is given in one of two ways, and its bytes are kept."""

    type: Annotated[str, Meta(min_length=1, max_length=1024)]
    payload: Raw | UnsetType = UNSET
    """Any JSON value: kept as it stands in the request."""
    payload_base64: bytes | UnsetType = UNSET
    """Any bytes."""
    content_type: Annotated[str, Meta(min_length=1, max_length=255)] = "application/json"
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


# --- letters ---------------------------------------------------------------------------------------------


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


# --- verbs -----------------------------------------------------------------------------------------------


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
    verified: "Verified | None" = None
    problem: Problem | None = None


# --- the queue -------------------------------------------------------------------------------------------


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
