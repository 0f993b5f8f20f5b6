"""Prometheus metrics of a worker process."""

from typing import override

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from uno.event_bus.dead_letter.telemetry.names import (
    DLQ_ERRORS,
    EVICTING_SERVERS,
    PROCESSING_ERRORS,
    PROCESSING_SECONDS,
    RETRY_COUNT,
    THREADS_LEFT,
    UNSETTLED,
    attempt_label,
)
from uno.event_bus.dead_letter.telemetry.recorder import Recorder

__all__ = ["PrometheusRecorder"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PrometheusRecorder(Recorder):
    """Records into a registry, the default one unless another is given."""

    def __init__(self, queue: str, registry: CollectorRegistry = REGISTRY) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        labels = ["queue"]
        self._seconds = Histogram(
            PROCESSING_SECONDS, "Seconds that a handler ran", labels, buckets=BUCKETS, registry=registry
        ).labels(queue)
        attempts = Counter(RETRY_COUNT, "Attempts made", [*labels, "attempt"], registry=registry)
        self._attempts = [attempts.labels(queue, attempt_label(attempt)) for attempt in range(1, 12)]
        self._errors = Counter(DLQ_ERRORS, "Failed attempts of every cause", [*labels, "cause"], registry=registry)
        self._handler_errors = Counter(
            PROCESSING_ERRORS, "Attempts whose handler failed", labels, registry=registry
        ).labels(queue)
        self._unsettled = Counter(UNSETTLED, "Outcomes that ended no lease", [*labels, "verdict"], registry=registry)
        self._evicting_servers = Gauge(
            EVICTING_SERVERS, "Servers that may delete letters when memory is full", labels, registry=registry
        ).labels(queue)
        self._threads_left = Gauge(
            THREADS_LEFT, "Calls that run on in threads past their end", labels, registry=registry
        ).labels(queue)

    @override
    def attempted(self, queue: str, attempt: int, duration_s: float, cause: str) -> None:
        self._seconds.observe(duration_s)
        self._attempts[min(attempt, 11) - 1].inc()
        if cause:
            self._errors.labels(queue, cause).inc()
            if cause in ("handler", "timeout"):
                self._handler_errors.inc()

    @override
    def lease_lost(self, queue: str, letters: int) -> None:
        self._errors.labels(queue, "lease").inc(letters)

    @override
    def stale_settles(self, queue: str, letters: int) -> None:
        self._unsettled.labels(queue, "stale").inc(letters)

    @override
    def unknown_settles(self, queue: str, letters: int) -> None:
        self._unsettled.labels(queue, "unknown").inc(letters)

    @override
    def threads_left(self, queue: str, threads: int) -> None:
        self._threads_left.set(threads)

    @override
    def evicting_servers(self, queue: str, servers: int) -> None:
        self._evicting_servers.set(servers)

    @override
    def store_failed(self, queue: str) -> None:
        self._errors.labels(queue, "store").inc()
