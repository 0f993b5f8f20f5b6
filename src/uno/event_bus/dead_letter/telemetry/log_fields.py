"""What a log line is about, in fields for programs: queue, worker and shard, letter, attempt and trace.

A task tells once what it works on (`bind`, `about`), and no call of a logger has to repeat that; a line about something
else says so with ``extra=``. `Fields` puts all of it on the records of a handler.
"""

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, override

from uno.event_bus.dead_letter.letter import Letter

__all__ = ["NAMES", "Fields", "about", "bind", "fields_of"]

NAMES: Final = ("queue", "worker", "shard", "letter_id", "attempt", "event_type", "trace_id", "span_id")
"""The fields, in the order of a line."""

_bound: ContextVar[Mapping[str, object] | None] = ContextVar("uno_log_fields", default=None)
_letter: ContextVar[Letter | None] = ContextVar("uno_letter", default=None)

about = _letter.set
"""Name the letter that this task, and what it starts, works on from now on; costs less than 0.1 µs."""


def bind(**fields: object) -> None:
    """Name what this task, and the tasks that it starts from now on, work on."""
    _bound.set({**(_bound.get() or {}), **fields})


def fields_of(letter: Letter) -> dict[str, object]:
    """Return the fields of a letter, for ``extra=``."""
    return {"letter_id": letter.id, "attempt": letter.attempt, "event_type": letter.type}


class Fields(logging.Filter):
    """Sets on each record the fields that are known where it is made; those of ``extra=`` stay as they are.

    For a handler: ``handler.addFilter(Fields())``. The handler has to be called where the record is made, so it comes
    before a `QueueHandler`, not after.
    """

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Set them; every record passes."""
        known = dict(_bound.get() or {})
        letter = _letter.get()
        if letter is not None and not hasattr(record, "letter_id"):
            known |= fields_of(letter)
        for name, value in (known | _of_trace()).items():
            record.__dict__.setdefault(name, value)
        return True


def _of_trace() -> dict[str, Any]:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:  # nobody has begun a span
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
