"""The registry of one queue in one process: all that its exposition, the page of metrics, shows."""

from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.telemetry.collector import QueueCollector
from uno.event_bus.dead_letter.telemetry.metrics import PrometheusRecorder
from uno.event_bus.dead_letter.telemetry.recorder import Recorder
from uno.event_bus.dead_letter.telemetry.snapshot import FRESH_S, Snapshot, Snapshots

__all__ = ["Exposed", "Observable", "registry_for"]


class Observable(Protocol):
    """What is needed of a queue."""

    @property
    def config(self) -> DeadLetterConfig:
        """Its settings."""
        ...

    def add_recorder(self, recorder: Recorder) -> None:
        """Tell one more recorder what this process does."""
        ...

    async def snapshot(self, before: Snapshot | None = None) -> Snapshot:
        """Return what metrics tell of the queue and its servers."""
        ...


class Exposed(NamedTuple):
    """What an exposition is made of: ``await snapshots.refresh()``, then render the registry, in any thread."""

    registry: CollectorRegistry
    snapshots: Snapshots


def registry_for(queue: Observable, registry: CollectorRegistry | None = None, *, fresh_s: float = FRESH_S) -> Exposed:
    """Return a registry, a new one unless it is given, with all metrics of a queue and of this process.

    A snapshot serves all scrapes for `fresh_s`. Call it once a queue and registry, before the queue's worker runs: from
    then on this process records.
    """
    registry = CollectorRegistry() if registry is None else registry
    queue.add_recorder(PrometheusRecorder(queue.config.queue, registry))
    snapshots = Snapshots(queue.snapshot, fresh_s=fresh_s)
    registry.register(QueueCollector(lambda: snapshots.latest))
    ProcessCollector(registry=registry)
    return Exposed(registry, snapshots)
