"""An application whose handlers heal, fail and hang by plan, for workers that are scraped: see `PLAN`.

Each run of a handler is a line in ``$MONITORED_FOLDER/<pid>.runs``, each span that ended one in ``<pid>.spans``.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, override

import anyio
import msgspec
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from uno.event_bus.dead_letter import DeadLetterQueue, Discard, Letter

__all__ = ["ATTEMPTS", "PLAN", "Planned", "make"]

ATTEMPTS = 12
"""Attempts before a letter is parked: more than the labels of `dlq_retry_count` tell apart."""

TIMEOUT_S = 0.3


class Planned(NamedTuple):
    """What becomes of the letters of one type."""

    letters: int
    causes: tuple[str, ...]
    """Of each attempt why it fails; empty for one that does not."""
    end: str
    """Verb of the last settle."""


PLAN = {
    "order.paid": Planned(200, ("",), "resolve"),
    "order.flaky": Planned(60, ("handler", "handler", ""), "resolve"),
    "order.slow": Planned(8, ("timeout", ""), "resolve"),
    "order.refused": Planned(6, ("handler",) * ATTEMPTS, "park"),
    "order.strict": Planned(5, ("invalid",), "park"),
    "order.dropped": Planned(4, ("",), "discard"),
    # Each captures one letter more of the type order.paid, in the worker's process.
    "order.chained": Planned(20, ("",), "resolve"),
}


class Strict(msgspec.Struct):
    """An event whose letters all lack what it needs."""

    amount: int


class _ToFile(SpanExporter):
    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context = span.get_span_context()
            if context is not None:
                _note(
                    "spans",
                    f"{context.trace_id:032x} {context.span_id:016x} {span.status.status_code.name} {span.name}",
                )
        return SpanExportResult.SUCCESS


def _note(kind: str, line: str) -> None:
    path = Path(os.environ["MONITORED_FOLDER"], f"{os.getpid()}.{kind}")
    with path.open("a") as out:
        out.write(f"{line}\n")


def make() -> DeadLetterQueue:
    """Return the application's queue; spans of this process go to its file."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_ToFile()))
    trace.set_tracer_provider(provider)
    queue = DeadLetterQueue.from_env()
    for type in ("order.paid", "order.flaky", "order.refused", "order.dropped"):
        queue.add_handler(_run, type)
    queue.add_handler(_hang_once, "order.slow", timeout=TIMEOUT_S)
    queue.add_handler(_never_called, "order.strict")

    @queue.handler("order.chained")
    async def chain(event: dict[str, object], letter: Letter) -> None:
        _note("runs", f"{letter.type} {letter.attempt}")
        await queue.add({}, type="order.paid", event_id=f"after {letter.event_id}", delay=0)

    return queue


async def _run(event: dict[str, object], letter: Letter) -> None:
    """Do what the plan says of this attempt."""
    _note("runs", f"{letter.type} {letter.attempt}")
    planned = PLAN[letter.type]
    if planned.causes[letter.attempt - 1]:
        raise ValueError(f"{letter.type} fails by plan")
    if planned.end == "discard":
        raise Discard("by plan")


async def _hang_once(event: dict[str, object], letter: Letter) -> None:
    """Run past the timeout at the first attempt."""
    _note("runs", f"{letter.type} {letter.attempt}")
    if letter.attempt == 1:
        await anyio.sleep_forever()


async def _never_called(event: Strict, letter: Letter) -> None:
    """No letter of this type can be decoded."""
    _note("runs", f"{letter.type} {letter.attempt}")
