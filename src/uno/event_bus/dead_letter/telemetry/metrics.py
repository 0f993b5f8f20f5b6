"""Prometheus metrics of a worker process."""

from typing import Any, override

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from uno.event_bus.dead_letter.telemetry import names
from uno.event_bus.dead_letter.telemetry.names import Metric, attempt_label
from uno.event_bus.dead_letter.telemetry.recorder import Recorder

__all__ = ["PrometheusRecorder"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PrometheusRecorder(Recorder):
    """Records into a registry, the default one unless another is given."""

    def __init__(self, queue: str, registry: CollectorRegistry = REGISTRY) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def made[M: MetricWrapperBase](kind: type[M], metric: Metric, **more: Any) -> M:
            return kind(metric.name, metric.says, metric.labels, registry=registry, **more)

        self._seconds = made(Histogram, names.PROCESSING_SECONDS, buckets=BUCKETS).labels(queue)
        attempts = made(Counter, names.RETRY_COUNT)
        self._attempts = [attempts.labels(queue, attempt_label(attempt)) for attempt in range(1, 12)]
        self._errors = made(Counter, names.DLQ_ERRORS)
        self._handler_errors = made(Counter, names.PROCESSING_ERRORS).labels(queue)
        self._unsettled = made(Counter, names.UNSETTLED)
        self._evicting_servers = made(Gauge, names.EVICTING_SERVERS).labels(queue)
        self._threads_left = made(Gauge, names.THREADS_LEFT).labels(queue)

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
