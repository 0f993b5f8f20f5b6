"""Every metric, in one place: its name, kind and labels, and what it counts. docs/metrics.md is this table in prose.

Names of counters are without the ``_total`` that their samples get (OpenMetrics). Four scopes:

- ``queue``: the same value from every exporter of a queue, read from Redis. Aggregate with ``max by (queue, …)``, never
  with ``sum``.
- ``server``: of a Redis server, likewise the same from every exporter.
- ``machine``: the same from every exporter of a queue on one machine. Aggregate with ``max by (queue, <host>)`` first.
- ``process``: what this process did or holds. Aggregate with ``sum``.

Labels are bounded: no ids, no messages; pairs of type and subscription at most `MOST_PAIRS` a process, then `OTHER`.
"""

from typing import Final, Literal, NamedTuple

__all__ = ["MOST_PAIRS", "OTHER", "TABLE", "Metric", "attempt_label"]

MOST_PAIRS: Final = 100
"""Pairs of event type and subscription that a process has series of; the rest share one."""

OTHER: Final = "_other"
"""The value of both labels of the pairs beyond."""

type Kind = Literal["counter", "gauge", "histogram"]
type Scope = Literal["queue", "server", "machine", "process"]


class Metric(NamedTuple):
    """One row of the table."""

    name: str
    kind: Kind
    scope: Scope
    labels: tuple[str, ...]
    says: str
    """One sentence without its full stop: the HELP line."""

    @property
    def sample(self) -> str:
        """Name of its samples; of a histogram, without ``_bucket``, ``_sum`` and ``_count``."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


TABLE: dict[str, Metric] = {}
"""Name → metric, in the order of this file."""


def _metric(kind: Kind, scope: Scope, name: str, labels: str, says: str) -> Metric:
    TABLE[name] = Metric(name, kind, scope, tuple(labels.split()), says)
    return TABLE[name]


# ------------------------------------------------------------------------------------ the queue, as Redis has it

QUEUE_SIZE: Final = _metric("gauge", "queue", "dlq_queue_size", "queue", "Open letters, in whatever state")
LETTERS: Final = _metric(
    "gauge", "queue", "dlq_letters", "queue state",
    "Open letters by state: waiting, leased, scheduled, suspect, held or parked",
)  # fmt: skip
SHARD_SIZE: Final = _metric("gauge", "queue", "dlq_shard_size", "queue shard", "Open letters of a shard")
SHARD_UP: Final = _metric(
    "gauge", "queue", "dlq_shard_up", "queue shard", "1 while the shard's node answers, else 0"
)  # fmt: skip
SHARD_WORKERS: Final = _metric(
    "gauge", "queue", "dlq_shard_workers", "queue shard", "Live workers that serve the shard; 0: nobody"
)
CLOCK_LEAD: Final = _metric(
    "gauge", "queue", "dlq_shard_clock_lead_seconds", "queue shard",
    "Seconds by which the shard's time is ahead of its server's clock, which was set back",
)  # fmt: skip
OLDEST_AGE: Final = _metric(
    "gauge", "queue", "dlq_oldest_letter_age_seconds", "queue", "Seconds since the oldest open letter was captured"
)
DUE_AGE: Final = _metric(
    "gauge",
    "queue",
    "dlq_oldest_due_age_seconds",
    "queue",
    "Seconds for which the longest-due letter has waited, leased ones aside; 0: none is due",
)
WORKERS: Final = _metric("gauge", "queue", "dlq_workers", "queue", "Live workers")
ERROR_GROUPS: Final = _metric(
    "gauge", "queue", "dlq_error_groups", "queue", "Error groups with open letters, counted by shard"
)
NEW_ERROR_GROUPS: Final = _metric(
    "counter", "queue", "dlq_new_error_groups", "queue", "Fingerprints captured that no open letter of the shard had"
)

CAPTURED: Final = _metric("counter", "queue", "dlq_captured", "queue", "Letters captured")
REPEATED: Final = _metric(
    "counter", "queue", "dlq_repeated", "queue", "Captures whose capture key was known: no new letter"
)
RESOLVED: Final = _metric("counter", "queue", "dlq_resolved", "queue", "Letters that a handler resolved")
RETRIED: Final = _metric("counter", "queue", "dlq_retried", "queue", "Attempts after which the letter was put off")
PARKED: Final = _metric("counter", "queue", "dlq_parked", "queue", "Times that a letter was parked")
RELEASED: Final = _metric("counter", "queue", "dlq_released", "queue", "Leases given back without an attempt")
REDRIVEN: Final = _metric("counter", "queue", "dlq_redriven", "queue", "Parked letters that an operator sent back")
DISCARDED: Final = _metric("counter", "queue", "dlq_discarded", "queue", "Letters removed on purpose")
EXPIRED: Final = _metric("counter", "queue", "dlq_expired", "queue", "Parked letters that retention removed")
CRASHED: Final = _metric("counter", "queue", "dlq_crashed", "queue", "Leases that ran out and were reclaimed")
ORPHANED: Final = _metric(
    "counter", "queue", "dlq_orphaned", "queue", "Letters that repair found in no place and scheduled"
)
LOST_EXTERNALLY: Final = _metric(
    "counter", "queue", "dlq_lost_externally", "queue", "Letters that something else than the engine deleted"
)

# ------------------------------------------------------------------------------------ servers

EVICTING_SERVERS: Final = _metric(
    "gauge", "server", "dlq_evicting_servers", "queue",
    "Servers whose maxmemory-policy deletes whole streams of letters when memory is full; must be 0",
)  # fmt: skip
SERVER_UP: Final = _metric(
    "gauge", "server", "dlq_server_up", "queue server", "1 while the server answers INFO, else 0"
)
SERVER_MEMORY: Final = _metric("gauge", "server", "dlq_server_memory_bytes", "queue server", "used_memory")
SERVER_MEMORY_RATIO: Final = _metric(
    "gauge", "server", "dlq_server_memory_ratio", "queue server",
    "used_memory / maxmemory; without maxmemory, / the machine's memory",
)  # fmt: skip
SERVER_CPU: Final = _metric(
    "counter", "server", "dlq_server_cpu_seconds", "queue server", "CPU seconds, user and system, of the server process"
)
SERVER_NETWORK: Final = _metric(
    "counter", "server", "dlq_server_network_bytes", "queue server direction", "Bytes that the server received or sent"
)

# ------------------------------------------------------------------------------------ this machine

SPOOL_BYTES: Final = _metric("gauge", "machine", "dlq_spool_bytes", "queue", "Bytes in this machine's spool")
SPOOL_LETTERS: Final = _metric("gauge", "machine", "dlq_spool_letters", "queue", "Letters in this machine's spool")
SPOOL_AGE: Final = _metric(
    "gauge",
    "machine",
    "dlq_spool_oldest_age_seconds",
    "queue",
    "Seconds since the oldest spooled letter was captured; 0: none",
)

# ------------------------------------------------------------------------------------ this process

PROCESSING_SECONDS: Final = _metric(
    "histogram", "process", "dlq_processing_seconds", "queue", "Seconds that a handler ran"
)
SCHEDULE_LAG: Final = _metric(
    "histogram",
    "process",
    "dlq_schedule_lag_seconds",
    "queue",
    "Seconds from when a letter was due to the start of its handler",
)
RETRY_COUNT: Final = _metric(
    "counter", "process", "dlq_retry_count", "queue attempt", "Attempts made, by their number: 1 to 10, then 10+"
)
DLQ_ERRORS: Final = _metric(
    "counter", "process", "dlq_dlq_errors", "queue cause",
    "Failed processing attempts of every cause: handler, timeout, invalid, lease or store",
)  # fmt: skip
PROCESSING_ERRORS: Final = _metric(
    "counter", "process", "dlq_processing_errors", "queue", "Attempts whose handler failed or ran into its timeout"
)
CAPTURES: Final = _metric(
    "counter", "process", "dlq_captures", "queue type subscription reason",
    "Captures that this process made, the spooled too; by event type, subscription and why the event failed",
)  # fmt: skip
OUTCOMES: Final = _metric(
    "counter", "process", "dlq_outcomes", "queue type subscription outcome reason",
    "Leases that this process ended: resolve, retry, park, release or discard; by event type, subscription and reason",
)  # fmt: skip
UNSETTLED: Final = _metric(
    "counter", "process", "dlq_unsettled_outcomes", "queue verdict", "Outcomes that ended no lease: stale or unknown"
)
LEASES_LOST: Final = _metric(
    "counter", "process", "dlq_leases_lost", "queue", "Leases that were lost while this process held them"
)
RECLAIMED: Final = _metric(
    "counter", "process", "dlq_reclaimed", "queue", "Leases of dead workers that this process took back"
)
HANDLERS_RUNNING: Final = _metric(
    "gauge",
    "process",
    "dlq_handlers_running",
    "queue",
    "Handlers that run in this process now",
)
HANDLERS_LIMIT: Final = _metric(
    "gauge", "process", "dlq_handlers_limit", "queue", "Handlers that may run at a time: DLQ_CONCURRENCY"
)
THREADS_LEFT: Final = _metric(
    "gauge",
    "process",
    "dlq_threads_left",
    "queue",
    "Calls of plain functions that run on past timeout, lease or worker",
)


def attempt_label(attempt: int) -> str:
    """Return the value of the label ``attempt``: 1 to 10, then ``10+``, so that it stays bounded."""
    return str(attempt) if attempt <= 10 else "10+"
