"""What every body and every request of the wire shares."""

from typing import Annotated, Any, Final

from msgspec import Meta, Struct

__all__ = [
    "BATCH",
    "MOST_IDS",
    "NDJSON",
    "PAGE",
    "PREFIX",
    "PROBLEM",
    "QUEUE_HEADER",
    "REQUEST_HEADER",
    "Ms",
    "Problem",
    "Text",
    "UnixMs",
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
