"""The panels of the Grafana dashboard as a table: what each asks, in which unit, and what it is for."""
# ruff: noqa: E501 - a query is one line, as in Grafana

from typing import NamedTuple

QUEUE = 'queue=~"$queue"'
SHARD = f'{QUEUE}, shard=~"$shard"'
TYPE = f'{QUEUE}, type=~"$type"'
RATE, RANGE = "[$__rate_interval]", "[$__range]"


class Query(NamedTuple):
    """One query of a panel."""

    expr: str
    legend: str = ""
    exemplars: bool = False


class Panel(NamedTuple):
    """One panel; `steps` are thresholds, each from a value on in a colour."""

    kind: str
    title: str
    width: int
    unit: str
    says: str
    queries: tuple[Query, ...]
    steps: tuple[tuple[float, str], ...] = ()
    stacked: bool = False
    top: float | None = None


def quantiles(metric: str, *, exemplars: bool = False) -> tuple[Query, ...]:
    """Return p50, p95 and p99 of a histogram, over all processes."""
    return tuple(
        Query(
            f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{QUEUE}}}{RATE})))",
            f"p{str(q)[2:].ljust(2, '0')}",
            exemplars,
        )
        for q in (0.5, 0.95, 0.99)
    )


def queue_rate(metric: str, legend: str) -> Query:
    """Return events a second of a queue's counter, which every exporter shows alike."""
    return Query(f"sum(max by (queue) (rate({metric}_total{{{QUEUE}}}{RATE})))", legend)


GUIDE = (
    Panel(
        "gauge", "DLQ Queue Size", 5, "short",
        "Open letters of a queue, in whatever state. HighDLQBacklog fires above 1,000.",
        (Query(f"max by (queue) (dlq_queue_size{{{QUEUE}}})", "{{queue}}"),),
        ((750, "yellow"), (1000, "red")), top=1500,
    ),
    Panel(
        "timeseries", "Processing Time", 11, "s",
        "How long handlers ran. A dot is one attempt: it leads to its trace where the data source knows the label trace_id. DLQSlowProcessing fires when p99 is above 5 s.",
        quantiles("dlq_processing_seconds", exemplars=True), ((5, "red"),),
    ),
    Panel(
        "stat", "Events Processed", 8, "short",
        "What became of events within the time shown: resolved by a handler; attempts made for that.",
        (
            Query(f"sum(max by (queue) (increase(dlq_resolved_total{{{QUEUE}}}{RANGE})))", "resolved"),
            Query(f"sum(increase(dlq_retry_count_total{{{QUEUE}}}{RANGE}))", "attempts"),
        ),
    ),
    Panel(
        "timeseries", "Error Rate", 16, "short",
        "Failed attempts a minute, by cause. DLQErrors fires above 10 a minute in all, DLQProcessingErrors above 10 a second of handlers.",
        (Query(f"sum by (cause) (rate(dlq_dlq_errors_total{{{QUEUE}}}{RATE})) * 60", "{{cause}}"),),
        ((10, "red"),), stacked=True,
    ),
    Panel(
        "piechart", "Retry Distribution", 8, "short",
        "Attempts within the time shown, by their number. Many high numbers: retries do not heal, see the error groups.",
        (Query(f"sum by (attempt) (increase(dlq_retry_count_total{{{QUEUE}}}{RANGE}))", "attempt {{attempt}}"),),
    ),
)  # fmt: skip

STATE = (
    Panel(
        "timeseries", "Letters by state", 12, "short",
        "Waiting and scheduled letters heal by themselves; parked and held ones wait for a person.",
        (Query(f"sum by (state) (max by (queue, state) (dlq_letters{{{QUEUE}}}))", "{{state}}"),), stacked=True,
    ),
    Panel(
        "timeseries", "In and out", 12, "eps",
        "Letters a second that came, and that ended.",
        (
            queue_rate("dlq_captured", "captured"),
            queue_rate("dlq_resolved", "resolved"),
            queue_rate("dlq_discarded", "discarded"),
            queue_rate("dlq_expired", "expired"),
        ),
    ),
    Panel(
        "timeseries", "Age", 12, "s",
        "Since the oldest open letter was captured; and for how long the longest-due one has waited, which is near 0 while workers keep up.",
        (
            Query(f"max by (queue) (dlq_oldest_letter_age_seconds{{{QUEUE}}})", "{{queue}}: oldest open"),
            Query(f"max by (queue) (dlq_oldest_due_age_seconds{{{QUEUE}}})", "{{queue}}: longest due"),
        ),
    ),
    Panel(
        "timeseries", "Put off, parked, sent back", 6, "eps",
        "Letters a second that were put off after a failure, parked, given back without an attempt, or redriven by an operator.",
        (
            queue_rate("dlq_retried", "put off"),
            queue_rate("dlq_parked", "parked"),
            queue_rate("dlq_released", "released"),
            queue_rate("dlq_redriven", "redriven"),
        ),
    ),
    Panel(
        "stat", "Irregular", 6, "short",
        "Within the time shown. Lost: deleted by something else than the engine. Orphaned: put back by repair. Repeated: captures of what was known, which is harmless.",
        (
            Query(f"sum(max by (queue) (increase(dlq_lost_externally_total{{{QUEUE}}}{RANGE})))", "lost"),
            Query(f"sum(max by (queue) (increase(dlq_orphaned_total{{{QUEUE}}}{RANGE})))", "orphaned"),
            Query(f"sum(max by (queue) (increase(dlq_repeated_total{{{QUEUE}}}{RANGE})))", "repeated"),
        ),
    ),
)  # fmt: skip

WORKERS = (
    Panel(
        "timeseries", "Letters by shard", 8, "short",
        "A shard that stands out has an ordering key with many letters, or no worker.",
        (Query(f"max by (queue, shard) (dlq_shard_size{{{SHARD}}})", "{{queue}} {{shard}}"),), stacked=True,
    ),
    Panel(
        "timeseries", "Workers by shard", 8, "short",
        "Live workers that serve a shard. 0: nobody, and DLQShardWithoutWorker fires after five minutes.",
        (Query(f"max by (queue, shard) (dlq_shard_workers{{{SHARD}}})", "{{queue}} {{shard}}"),),
    ),
    Panel(
        "timeseries", "Shards that answer", 8, "short",
        "1 while a shard's Redis node answers.",
        (Query(f"max by (queue, shard) (dlq_shard_up{{{SHARD}}})", "{{queue}} {{shard}}"),), top=1,
    ),
    Panel(
        "stat", "Workers", 4, "short",
        "Live workers of a queue, by its registry.",
        (Query(f"max by (queue) (dlq_workers{{{QUEUE}}})", "{{queue}}"),),
    ),
    Panel(
        "timeseries", "Handlers", 10, "short",
        "Handlers that run, beside those that may run at a time (DLQ_CONCURRENCY). At the limit while letters are overdue: more workers, or more concurrency. Threads left: plain functions that ran past their timeout and cannot be stopped.",
        (
            Query(f"sum by (queue) (dlq_handlers_running{{{QUEUE}}})", "{{queue}}: running"),
            Query(f"sum by (queue) (dlq_handlers_limit{{{QUEUE}}})", "{{queue}}: limit"),
            Query(f"sum by (queue) (dlq_threads_left{{{QUEUE}}})", "{{queue}}: threads left"),
        ),
    ),
    Panel(
        "timeseries", "Schedule lag", 10, "s",
        "From when a letter was due to the start of its handler.",
        quantiles("dlq_schedule_lag_seconds"),
    ),
    Panel(
        "timeseries", "Leases", 12, "eps",
        "A second: leases that ran out (crashed), that processes lost while they held them, that they took back from the dead.",
        (
            queue_rate("dlq_crashed", "crashed"),
            Query(f"sum(rate(dlq_leases_lost_total{{{QUEUE}}}{RATE}))", "lost"),
            Query(f"sum(rate(dlq_reclaimed_total{{{QUEUE}}}{RATE}))", "reclaimed"),
            Query(f"sum by (verdict) (rate(dlq_unsettled_outcomes_total{{{QUEUE}}}{RATE}))", "settle refused: {{verdict}}"),
        ),
    ),
    Panel(
        "timeseries", "CPU of workers", 12, "percentunit",
        "Of one core, by process. A worker is one Python process: near 1, run more of them.",
        (Query(f"rate(process_cpu_seconds_total{RATE}) and on (instance) dlq_handlers_limit{{{QUEUE}}}", "{{instance}}"),),
        ((0.7, "yellow"), (0.9, "red")),
    ),
)  # fmt: skip

OUTCOMES = (
    Panel(
        "timeseries", "Captures by type", 12, "eps",
        "Letters a second, by event type. Beyond 100 pairs of type and subscription a process counts them as _other.",
        (Query(f"sum by (type) (rate(dlq_captures_total{{{TYPE}}}{RATE}))", "{{type}}"),), stacked=True,
    ),
    Panel(
        "timeseries", "Outcomes by type", 12, "eps",
        "Attempts that were settled, a second.",
        (Query(f"sum by (type, outcome) (rate(dlq_outcomes_total{{{TYPE}}}{RATE}))", "{{type}}: {{outcome}}"),),
    ),
    Panel(
        "timeseries", "Failing subscriptions", 12, "eps",
        "The ten whose attempts end most often without being resolved.",
        (Query(f'topk(10, sum by (type, subscription) (rate(dlq_outcomes_total{{{TYPE}, outcome!="resolve"}}{RATE})))', "{{type}} → {{subscription}}"),),
    ),
    Panel(
        "piechart", "Captures by reason", 12, "short",
        "Within the time shown: why events came here.",
        (Query(f"sum by (reason) (increase(dlq_captures_total{{{TYPE}}}{RANGE}))", "{{reason}}"),),
    ),
)  # fmt: skip

ERRORS = (
    Panel(
        "timeseries", "Error groups", 8, "short",
        "Fingerprints that have open letters: how many different things are wrong.",
        (Query(f"max by (queue) (dlq_error_groups{{{QUEUE}}})", "{{queue}}"),),
    ),
    Panel(
        "timeseries", "New fingerprints", 8, "short",
        "Errors that no open letter had when they came, within a quarter of an hour. Just after a deployment: look there.",
        (Query(f"max by (queue) (increase(dlq_new_error_groups_total{{{QUEUE}}}[15m]))", "{{queue}}"),),
    ),
    Panel(
        "timeseries", "Share of attempts that fail", 8, "percentunit",
        "Of the handlers' runs, those that raised or took too long.",
        (
            Query(
                f"sum by (queue) (rate(dlq_processing_errors_total{{{QUEUE}}}{RATE})) / sum by (queue) (rate(dlq_processing_seconds_count{{{QUEUE}}}{RATE}))",
                "{{queue}}",
            ),
        ),
        top=1,
    ),
)  # fmt: skip

SERVERS = (
    Panel(
        "timeseries", "Memory", 8, "percentunit",
        "Of maxmemory, or where there is none of the machine. Above 70 % DLQServerMemory fires.",
        (Query(f"max by (server) (dlq_server_memory_ratio{{{QUEUE}}})", "{{server}}"),), ((0.7, "red"),), top=1,
    ),
    Panel(
        "timeseries", "Memory in bytes", 8, "bytes",
        "used_memory.",
        (Query(f"max by (server) (dlq_server_memory_bytes{{{QUEUE}}})", "{{server}}"),),
    ),
    Panel(
        "timeseries", "CPU", 8, "percentunit",
        "Of one core. Above 70 % for long DLQServerBusy fires.",
        (Query(f"max by (server) (rate(dlq_server_cpu_seconds_total{{{QUEUE}}}{RATE}))", "{{server}}"),),
        ((0.7, "red"),),
    ),
    Panel(
        "timeseries", "Network", 8, "Bps",
        "Bytes a second that servers received and sent.",
        (Query(f"max by (server, direction) (rate(dlq_server_network_bytes_total{{{QUEUE}}}{RATE}))", "{{server}}: {{direction}}"),),
    ),
    Panel(
        "timeseries", "Servers that answer", 8, "short",
        "1 while a server answers INFO.",
        (Query(f"max by (server) (dlq_server_up{{{QUEUE}}})", "{{server}}"),), top=1,
    ),
    Panel(
        "stat", "Servers that evict", 4, "short",
        "Must be 0: such a server deletes whole streams of letters when its memory is full.",
        (Query(f"max by (queue) (dlq_evicting_servers{{{QUEUE}}})", "{{queue}}"),), ((1, "red"),),
    ),
    Panel(
        "stat", "Clock set back", 4, "s",
        "By how much the time of the shard that is furthest ahead leads its server's clock.",
        (Query(f"max by (queue) (dlq_shard_clock_lead_seconds{{{SHARD}}})", "{{queue}}"),), ((60, "yellow"),),
    ),
)  # fmt: skip

SPOOL = (
    Panel(
        "timeseries", "Letters in the spool", 8, "short",
        "Captures that wait on a machine's disk for Redis. Processes of one machine show the same spool.",
        (Query(f"max by (queue, instance) (dlq_spool_letters{{{QUEUE}}})", "{{queue}} {{instance}}"),),
    ),
    Panel(
        "timeseries", "Bytes of the spool", 8, "bytes",
        "At DLQ_SPOOL_MAX_BYTES captures are refused.",
        (Query(f"max by (queue, instance) (dlq_spool_bytes{{{QUEUE}}})", "{{queue}} {{instance}}"),),
    ),
    Panel(
        "timeseries", "Oldest letter in the spool", 8, "s",
        "DLQSpoolNotDraining fires above ten minutes.",
        (Query(f"max by (queue, instance) (dlq_spool_oldest_age_seconds{{{QUEUE}}})", "{{queue}} {{instance}}"),),
        ((600, "red"),),
    ),
)  # fmt: skip

ROWS = {
    "State of the queue": STATE,
    "Shards and workers": WORKERS,
    "Outcomes by type": OUTCOMES,
    "Errors": ERRORS,
    "Redis servers": SERVERS,
    "Spool": SPOOL,
}
