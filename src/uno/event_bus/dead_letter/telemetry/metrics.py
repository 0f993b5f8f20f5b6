"""What this process does, as Prometheus metrics: the rows of the scope ``process``."""

from collections.abc import Callable, Sequence
from typing import Any, Final, override

from opentelemetry.trace import INVALID_SPAN, format_span_id, format_trace_id, get_current_span
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from uno.event_bus.dead_letter.letter import Letter, NewLetter, Verb
from uno.event_bus.dead_letter.telemetry import names
from uno.event_bus.dead_letter.telemetry.labels import Labels
from uno.event_bus.dead_letter.telemetry.names import Metric, attempt_label
from uno.event_bus.dead_letter.telemetry.recorder import Recorder, Settled

__all__ = ["PrometheusRecorder"]

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LAGS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
"""Upper ends of buckets, seconds."""

CAUSES: Final = ("handler", "timeout", "invalid", "lease", "store")

MOST_STORED: Final = 5_000
"""More ways to write the labels there are only when strangers write no UTF-8."""

type Ended = tuple[bytes | None, bytes | None, Verb, str]
"""Type and subscription as they are stored, how the lease ended, and why."""


class PrometheusRecorder(Recorder):
    """Records one queue into a registry, the default one unless another is given."""

    def __init__(self, queue: str, registry: CollectorRegistry = REGISTRY) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def made[M: MetricWrapperBase](kind: type[M], metric: Metric, **more: Any) -> M:
            return kind(metric.name, metric.says, metric.labels, registry=registry, **more)

        self._queue = queue
        self._labels = Labels()
        self._crews: dict[str, tuple[Callable[[], int], int]] = {}
        """Consumer → what tells how many of its handlers run, and how many may."""
        self._seconds = made(Histogram, names.PROCESSING_SECONDS, buckets=SECONDS).labels(queue)
        self._lags = made(Histogram, names.SCHEDULE_LAG, buckets=LAGS).labels(queue)
        attempts = made(Counter, names.RETRY_COUNT)
        self._attempts = [attempts.labels(queue, attempt_label(attempt)) for attempt in range(1, 12)]
        # Each series is there from the start, at 0: a first error would otherwise be no increase.
        errors = made(Counter, names.DLQ_ERRORS)
        self._errors = {cause: errors.labels(queue, cause) for cause in CAUSES}
        self._handler_errors = made(Counter, names.PROCESSING_ERRORS).labels(queue)
        self._captures = made(Counter, names.CAPTURES)
        self._captures_of: dict[tuple[str, str, str], Counter] = {}
        """By the labels, which most letters name as they are."""
        self._outcomes = made(Counter, names.OUTCOMES)
        self._outcomes_of: dict[tuple[str, str, Verb, str], Counter] = {}
        self._outcomes_of_stored: dict[Ended, Counter] = {}
        """By what letters say as it is stored, so that nothing need be decoded."""
        unsettled = made(Counter, names.UNSETTLED)
        self._stale, self._unknown = unsettled.labels(queue, "stale"), unsettled.labels(queue, "unknown")
        self._leases_lost = made(Counter, names.LEASES_LOST).labels(queue)
        self._reclaimed = made(Counter, names.RECLAIMED).labels(queue)
        self._threads_left = made(Gauge, names.THREADS_LEFT).labels(queue)
        made(Gauge, names.HANDLERS_RUNNING).labels(queue).set_function(self._running)
        made(Gauge, names.HANDLERS_LIMIT).labels(queue).set_function(self._limit)

    # -- captures ------------------------------------------------------------------------------------

    @override
    def captured(self, queue: str, letters: Sequence[NewLetter]) -> None:
        tally: dict[tuple[str, str, str], int] = {}
        for new in letters:
            said = new.type, new.subscription, new.reason
            tally[said] = tally.get(said, 0) + 1
        for (type, subscription, reason), count in tally.items():
            self._capture(type, subscription, reason).inc(count)

    def _capture(self, type: str, subscription: str, reason: str) -> Counter:
        child = self._captures_of.get((type, subscription, reason))
        if child is None:
            labels = (*self._labels.pair(type, subscription), self._labels.reason(reason))
            child = self._captures_of.get(labels)
            if child is None:
                child = self._captures_of[labels] = self._captures.labels(self._queue, *labels)
        return child

    # -- attempts ------------------------------------------------------------------------------------

    @override
    def started(self, queue: str, letter: Letter, lag_s: float | None) -> None:
        if lag_s is not None:
            self._lags.observe(lag_s)

    @override
    def attempted(self, queue: str, letter: Letter, duration_s: float, cause: str) -> None:
        exemplar = _exemplar()
        self._seconds.observe(duration_s, exemplar)
        self._attempts[min(letter.attempt, 11) - 1].inc()
        if cause:
            self._errors[cause].inc(exemplar=exemplar)
            if cause in ("handler", "timeout"):
                self._handler_errors.inc(exemplar=exemplar)

    @override
    def refused(self, queue: str, letter: Letter) -> None:
        self._errors["invalid"].inc(exemplar=_exemplar())

    # -- leases --------------------------------------------------------------------------------------

    @override
    def settled(self, queue: str, ended: Sequence[Settled]) -> None:
        tally: dict[Ended, int] = {}
        for letter, verb, reason in ended:
            key = *letter.route, verb, reason
            tally[key] = tally.get(key, 0) + 1
        for key, count in tally.items():
            self._outcome(key).inc(count)

    def _outcome(self, key: Ended) -> Counter:
        child = self._outcomes_of_stored.get(key)
        if child is None:
            type, subscription = ((value or b"").decode("utf-8", "replace") for value in key[:2])
            labels = *self._labels.pair(type, subscription), key[2], self._labels.reason(key[3])
            child = self._outcomes_of.get(labels)
            if child is None:
                child = self._outcomes_of[labels] = self._outcomes.labels(self._queue, *labels)
            if labels == (type, subscription, *key[2:]) and len(self._outcomes_of_stored) < MOST_STORED:
                self._outcomes_of_stored[key] = child
        return child

    @override
    def stale_settles(self, queue: str, letters: int) -> None:
        self._stale.inc(letters)

    @override
    def unknown_settles(self, queue: str, letters: int) -> None:
        self._unknown.inc(letters)

    @override
    def lease_lost(self, queue: str, letters: int) -> None:
        self._leases_lost.inc(letters)
        self._errors["lease"].inc(letters)

    @override
    def reclaimed(self, queue: str, letters: int) -> None:
        self._reclaimed.inc(letters)

    @override
    def store_failed(self, queue: str) -> None:
        self._errors["store"].inc()

    # -- places for handlers -------------------------------------------------------------------------

    @override
    def crew_began(self, queue: str, consumer: str, running: Callable[[], int], limit: int) -> None:
        self._crews[consumer] = running, limit

    @override
    def crew_ended(self, queue: str, consumer: str) -> None:
        self._crews.pop(consumer, None)

    def _running(self) -> float:
        return sum(running() for running, _ in list(self._crews.values()))

    def _limit(self) -> float:
        return sum(limit for _, limit in list(self._crews.values()))

    @override
    def threads_left(self, queue: str, threads: int) -> None:
        self._threads_left.set(threads)


def _exemplar() -> dict[str, str] | None:
    """Return where an operator finds the attempt: the span that is current and sampled; None without one."""
    span = get_current_span()
    if span is INVALID_SPAN:
        return None
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
