"""Spans as tests look at them: recorded in memory, or by another process as JSON lines; no global provider."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, override

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanContext

__all__ = ["JsonLines", "Link", "Recorded", "Traces", "read_spans"]

type Ids = tuple[str, str]
"""Trace id and span id, hex."""


@dataclass(frozen=True)
class Link:
    """To what, and what is said of it."""

    ids: Ids
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """A span that has ended."""

    name: str
    kind: str
    ids: Ids
    parent: str | None
    links: list[Link]
    attributes: dict[str, Any]
    status: str
    events: list[tuple[str, dict[str, Any]]]
    scope: str
    schema: str
    pid: int
    start_ns: int
    end_ns: int

    @property
    def trace(self) -> str:
        return self.ids[0]

    @classmethod
    def of(cls, span: ReadableSpan) -> Self:
        assert span.context is not None and span.instrumentation_scope is not None
        return cls(
            span.name,
            span.kind.name,
            _ids(span.context),
            None if span.parent is None else f"{span.parent.span_id:016x}",
            [Link(_ids(link.context), dict(link.attributes or {})) for link in span.links],
            dict(span.attributes or {}),
            span.status.status_code.name,
            [(event.name, dict(event.attributes or {})) for event in span.events],
            span.instrumentation_scope.name,
            span.instrumentation_scope.schema_url or "",
            os.getpid(),
            span.start_time or 0,
            span.end_time or 0,
        )


def _ids(context: SpanContext) -> Ids:
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


class JsonLines(SpanExporter):
    """Appends spans to a file."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            line = json.dumps(vars(Recorded.of(span)), default=vars)
            os.write(self._file, line.encode() + b"\n")
        return SpanExportResult.SUCCESS


def read_spans(path: Path) -> list[Recorded]:
    """Return the spans that processes have written to a file."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        links = [Link(tuple(link["ids"]), link["attributes"]) for link in row.pop("links")]
        row["ids"] = tuple(row["ids"])
        row["events"] = [(name, attributes) for name, attributes in row["events"]]
        found.append(Recorded(links=links, **row))
    return found


class Traces:
    """A provider of the test's own, and what was recorded by it."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("application")

    def all(self, name: str = "", *, where: Callable[[Recorded], bool] = lambda span: True) -> list[Recorded]:
        """Return the spans whose names begin so, in the order in which they began."""
        found = [Recorded.of(span) for span in self._exporter.get_finished_spans()]
        return sorted(
            (span for span in found if span.name.startswith(name) and where(span)), key=lambda span: span.start_ns
        )

    def one(self, name: str, *, kind: str = "") -> Recorded:
        """Return the one span of this name, and kind if one is given."""
        [span] = [span for span in self.all() if span.name == name and kind in ("", span.kind)]
        return span

    def clear(self) -> None:
        """Forget what was recorded."""
        self._exporter.clear()
