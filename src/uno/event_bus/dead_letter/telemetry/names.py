"""Names of metrics, in one place."""

from typing import Final

__all__ = [
    "DLQ_ERRORS",
    "EVICTING_SERVERS",
    "PROCESSING_ERRORS",
    "PROCESSING_SECONDS",
    "RETRY_COUNT",
    "THREADS_LEFT",
    "UNSETTLED",
    "attempt_label",
]

PROCESSING_SECONDS: Final = "dlq_processing_seconds"
"""Histogram: seconds that a handler ran."""

RETRY_COUNT: Final = "dlq_retry_count"
"""Counter: attempts made, by label ``attempt``."""

DLQ_ERRORS: Final = "dlq_dlq_errors"
"""Counter: failed attempts of every cause, by label ``cause``."""

PROCESSING_ERRORS: Final = "dlq_processing_errors"
"""Counter: attempts whose handler failed."""

EVICTING_SERVERS: Final = "dlq_evicting_servers"
"""Gauge: servers whose ``maxmemory-policy`` deletes whole streams of letters when memory is full; must be 0."""

UNSETTLED: Final = "dlq_unsettled_outcomes"
"""Counter: outcomes that ended no lease, by label ``verdict``: ``stale`` or ``unknown``."""

THREADS_LEFT: Final = "dlq_threads_left"
"""Gauge: calls of plain functions that run on in their threads past their timeout, lease or worker."""


def attempt_label(attempt: int) -> str:
    """Return the value of the label ``attempt``: 1 to 10, then ``10+``, so that it stays bounded."""
    return str(attempt) if attempt <= 10 else "10+"
