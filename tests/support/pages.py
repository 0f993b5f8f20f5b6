"""A page of metrics, read as strictly as OpenMetrics asks."""

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from uno.event_bus.dead_letter.telemetry.names import Metric


class Page:
    """What a registry shows: families by name, values by metric and labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes = generate_latest(registry)
        self.families: dict[str, Family] = {
            family.name: family for family in text_string_to_metric_families(self.bytes.decode())
        }

    def samples(self, metric: Metric, suffix: str = "", **labels: str) -> list[Sample]:
        """The samples of a metric that have these labels; `suffix` is `_sum`, `_count` or `_bucket` of a histogram."""
        return [
            sample
            for sample in self.families[metric.name].samples
            if sample.name == metric.sample + suffix and labels.items() <= sample.labels.items()
        ]

    def value(self, metric: Metric, suffix: str = "", **labels: str) -> float:
        """The sum of those; of none it is NaN, which equals no number."""
        found = self.samples(metric, suffix, **labels)
        return sum(sample.value for sample in found) if found else float("nan")

    def by(self, metric: Metric, label: str, **labels: str) -> dict[str, float]:
        """Value of the label → sum of the samples, without those that are 0."""
        found: dict[str, float] = {}
        for sample in self.samples(metric, **labels):
            if sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
        return found
