"""The rows of the scopes ``queue``, ``server`` and ``machine``: exposed from the latest snapshot, without I/O."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import override

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from uno.event_bus.dead_letter.telemetry import names
from uno.event_bus.dead_letter.telemetry.names import Metric
from uno.event_bus.dead_letter.telemetry.snapshot import Snapshot

__all__ = ["QueueCollector"]

type Samples = Sequence[tuple[tuple[str, ...], float]]
"""Of each the values of the labels after ``queue``, and the value."""

TOTAL_OF = {
    names.NEW_ERROR_GROUPS: "new_error_groups",
    names.CAPTURED: "captured",
    names.REPEATED: "repeated",
    names.RESOLVED: "resolved",
    names.RETRIED: "retried",
    names.PARKED: "parked_total",
    names.RELEASED: "released",
    names.REDRIVEN: "redriven",
    names.DISCARDED: "discarded",
    names.EXPIRED: "expired",
    names.CRASHED: "crashed",
    names.ORPHANED: "orphaned",
    names.LOST_EXTERNALLY: "lost_externally",
}
"""Counter → the total of the shards that it tells."""


class QueueCollector(Collector):
    """Tells what the latest snapshot holds; before the first there are families without samples."""

    def __init__(self, latest: Callable[[], Snapshot | None]) -> None:
        self._latest = latest

    @override
    def collect(self) -> Iterable[Family]:
        snapshot = self._latest() or Snapshot("")
        for metric, samples in _rows(snapshot):
            made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = made(metric.name, metric.says, labels=metric.labels)
            for labels, value in samples:
                family.add_metric([snapshot.queue, *labels], value)
            yield family

    def describe(self) -> Iterable[Family]:
        """Return the families without samples: a registry asks for them when the collector is registered."""
        return QueueCollector(lambda: None).collect()


def _rows(snapshot: Snapshot) -> Iterator[tuple[Metric, Samples]]:
    yield from _gauges(snapshot)
    for metric, name in TOTAL_OF.items():
        yield metric, [((), snapshot.total(name))] if snapshot.are_all_known else []
    yield from _workers(snapshot)
    yield from _servers(snapshot)
    yield from _spool(snapshot)


def _gauges(snapshot: Snapshot) -> Iterator[tuple[Metric, Samples]]:
    """What the shards hold; of those that never answered it is not known."""
    at = snapshot.taken_at
    known = [(str(index), shard) for index, shard in enumerate(snapshot.shards) if shard.books]
    states = {
        "leased": snapshot.total("leased"),
        "scheduled": snapshot.total("scheduled"),
        "suspect": snapshot.total("suspect"),
        "held": snapshot.total("held"),
        "parked": snapshot.total("parked"),
    }
    states["waiting"] = max(0, snapshot.total("open") - sum(states.values()))
    one = [()] if known else []
    yield names.QUEUE_SIZE, [(labels, snapshot.total("open")) for labels in one]
    yield names.LETTERS, [((state,), count) for state, count in states.items() if known]
    yield names.SHARD_SIZE, [((index,), shard.number("open")) for index, shard in known]
    yield names.SHARD_UP, [((str(index),), shard.is_up) for index, shard in enumerate(snapshot.shards)]
    yield names.CLOCK_LEAD, [((index,), shard.number("lead_ms") / 1000) for index, shard in known]
    yield names.OLDEST_AGE, [(labels, max(shard.oldest_age_s(at) for _, shard in known)) for labels in one]
    yield names.DUE_AGE, [(labels, max(shard.due_age_s(at) for _, shard in known)) for labels in one]
    yield names.ERROR_GROUPS, [(labels, snapshot.total("error_groups")) for labels in one]


def _workers(snapshot: Snapshot) -> Iterator[tuple[Metric, Samples]]:
    workers = snapshot.workers
    if workers is None:
        yield names.WORKERS, []
        yield names.SHARD_WORKERS, []
        return
    yield names.WORKERS, [((), len(workers))]
    served = [sum(index in shards for shards in workers) for index in range(len(snapshot.shards))]
    yield names.SHARD_WORKERS, [((str(index),), count) for index, count in enumerate(served)]


def _servers(snapshot: Snapshot) -> Iterator[tuple[Metric, Samples]]:
    used = [(name, server.usage) for name, server in snapshot.servers.items() if server.usage is not None]
    yield names.EVICTING_SERVERS, [((), sum(usage.may_evict for _, usage in used))] if used else []
    yield names.SERVER_UP, [((name,), server.is_up) for name, server in snapshot.servers.items()]
    yield names.SERVER_MEMORY, [((name,), usage.used_memory) for name, usage in used]
    limited = [(name, usage) for name, usage in used if usage.memory_limit]
    yield names.SERVER_MEMORY_RATIO, [((name,), usage.used_memory / usage.memory_limit) for name, usage in limited]
    yield names.SERVER_CPU, [((name,), usage.cpu_s) for name, usage in used]
    yield (
        names.SERVER_NETWORK,
        [((name, "received"), usage.received_bytes) for name, usage in used]
        + [((name, "sent"), usage.sent_bytes) for name, usage in used],
    )


def _spool(snapshot: Snapshot) -> Iterator[tuple[Metric, Samples]]:
    spool = snapshot.spool
    yield names.SPOOL_BYTES, [((), spool.bytes)] if spool else []
    yield names.SPOOL_LETTERS, [((), spool.letters)] if spool else []
    yield names.SPOOL_AGE, [((), spool.oldest_age_s)] if spool else []
