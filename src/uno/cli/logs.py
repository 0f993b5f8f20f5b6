"""Logs of a command that works by itself: lines for people on a terminal, JSON lines for programs anywhere else.

A line of the engine that comes again and again is written five times in ten seconds; how many more there were is a line
of its own. Only the engine's lines are held back, and none of level ``debug``.
"""

import logging
import re
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import Final, TextIO, override

import msgspec

from uno.cli.text import json_safe, lines
from uno.event_bus.dead_letter.telemetry.log_fields import NAMES, Fields
from uno.event_bus.dead_letter.telemetry.ration import WINDOW_S, Ration

__all__ = ["JsonLines", "PlainLines", "Repeats", "log_to_stderr"]

ENGINE: Final = "uno"

_SECRET: Final = re.compile(r"(?<=://)(?:[^\s/:@]*:(?!\d*/)(?:(?!://)\S)*|[^\s/]*)@")
"""User and password of a URL, in whatever text it stands; none is ever put there by the engine itself.

A password may have a slash that ought to have been quoted; what comes after a port or a path is none. Each try ends at
the next ``://``, so that a long text costs linear time.
"""

MOST_PLACES: Final = 1000
"""Kinds of lines that are counted; an application may make up texts without end."""


def log_to_stderr(format: str, level: str) -> None:  # noqa: A002 - our word for it
    """Log to stderr, unless the application has set up logging of its own.

    `format` is ``plain``, ``json`` or ``auto``; `level` counts for the engine, and for other loggers when it is above
    ``info``.
    """
    root, engine = logging.getLogger(), logging.getLogger(ENGINE)
    if root.handlers or engine.handlers:
        return
    plain = format == "plain" or (format == "auto" and sys.stderr.isatty())
    handler = _Stderr()
    handler.setFormatter(PlainLines() if plain else JsonLines())
    root.addHandler(handler)
    engine.setLevel(level.upper())
    root.setLevel(max(engine.level, logging.INFO))


class PlainLines(logging.Formatter):
    """One line an entry, in UTC, with nothing in it that a terminal would obey."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of a traceback."""
        return lines(_without_secrets(super().format(record)))


class JsonLines(logging.Formatter):
    """One JSON object an entry: ts, level, logger, message; what it is about; error and traceback."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record.getMessage()),
        }
        for name in (*NAMES, "error"):
            value = getattr(record, name, None)
            if value not in (None, ""):
                line[name] = value if isinstance(value, int) else _text(str(value))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = _text(" ".join(f"{type(error).__qualname__}: {error}".split()))
            line["traceback"] = _text("".join(traceback.format_exception(error)))
        return json_safe(msgspec.json.encode(line).decode())


def _text(text: str) -> str:
    """Return what may go into UTF-8, without secrets."""
    return _without_secrets(text.encode("utf-8", "replace").decode())


def _without_secrets(text: str) -> str:
    return _SECRET.sub("***@", text) if "@" in text else text


class Repeats(logging.Filter):
    """Holds back lines of the engine that repeat themselves: one text from one place, whatever is put into it.

    `told` gets the records that say how many were held back: with the next line after 10 s, and else soon.
    """

    def __init__(self, told: logging.Handler) -> None:
        super().__init__(ENGINE)
        self._told = told
        self._rations: dict[tuple[str, int, str], tuple[Ration, logging.LogRecord]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Answer whether the record is written."""
        # What is rationed where it is made says there how much it leaves out.
        if record.levelno <= logging.DEBUG or not super().filter(record) or hasattr(record, "is_rationed"):
            return True
        place = (record.pathname, record.lineno, str(record.msg))
        with self._lock:
            if place not in self._rations:
                while len(self._rations) >= MOST_PLACES:
                    del self._rations[next(iter(self._rations))]
                self._rations[place] = Ration(), record
            ration = self._rations[place][0]
            over = [self._count(*self._rations[place])] if ration.is_over and ration.unsaid else []
            allowed = ration.allows()
            if not allowed and self._timer is None:
                self._begin_timer()
        self._tell(over)
        return allowed

    def _begin_timer(self) -> None:
        self._timer = threading.Timer(WINDOW_S, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        """Tell what was held back until now; look again when there is more to come."""
        with self._lock:
            self._timer = None
            held_back = [kind for kind in self._rations.values() if kind[0].unsaid]
            over = [self._count(*kind) for kind in held_back if kind[0].is_over]
            if len(over) < len(held_back):
                self._begin_timer()
        self._tell(over)

    def end(self) -> None:
        """Tell all that was held back."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            held_back = [self._count(*kind) for kind in self._rations.values() if kind[0].unsaid]
        self._tell(held_back)

    def _count(self, ration: Ration, record: logging.LogRecord) -> logging.LogRecord:
        counted = logging.LogRecord(
            record.name,
            record.levelno,
            record.pathname,
            record.lineno,
            "%d more lines like this one were not logged: %s",
            (ration.unsaid, record.msg),
            None,
        )
        ration.unsaid = 0
        return counted

    def _tell(self, records: list[logging.LogRecord]) -> None:
        for record in records:
            with self._told.lock or threading.Lock():
                self._told.emit(record)


class _Stderr(logging.StreamHandler[TextIO]):
    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._repeats = Repeats(self)
        self.addFilter(self._repeats)
        self.addFilter(Fields())

    @override
    def close(self) -> None:
        self._repeats.end()
        super().close()
