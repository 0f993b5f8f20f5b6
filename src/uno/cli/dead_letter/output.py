"""What commands print: tables for people on stdout, JSON for programs, progress on stderr."""

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from uno.cli.text import json_safe, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

__all__ = [
    "Format",
    "Records",
    "console",
    "fit",
    "format_of",
    "note",
    "progress",
    "span",
    "table",
    "when",
    "write_record",
]

type Format = Literal["table", "json", "jsonl"]
type Record = dict[str, Any]

WIDTH_WITHOUT_TERMINAL: Final = 160
"""Columns of a table that goes into a file, unless COLUMNS says otherwise."""

COLUMN_GAP: Final = 2
NARROWEST: Final = 4


def format_of(output: str | None, *, many: bool = False) -> Format:
    """Return the format that was asked for; else a table on a terminal, and JSON anywhere else.

    `many`: the command prints any number of records, so its JSON is one a line.
    """
    if output in ("table", "json", "jsonl"):
        return output  # type: ignore[return-value]  # narrowed by the line above
    if sys.stdout.isatty():
        return "table"
    return "jsonl" if many else "json"


# --- for programs ----------------------------------------------------------------------------------------


def write_record(record: Record, format: Format) -> None:  # noqa: A002 - our word for it
    """Print one record, indented unless lines are wanted."""
    print(_json(record, indent=0 if format == "jsonl" else 2))


def _json(record: Record, indent: int) -> str:
    import msgspec

    encoded = msgspec.json.encode(record)
    return json_safe((msgspec.json.format(encoded, indent=indent) if indent else encoded).decode())


class Records:
    """Any number of records as they come: one a line, or the items of one JSON array."""

    def __init__(self, format: Format) -> None:  # noqa: A002 - as above
        self._as_array = format == "json"
        self._count = 0

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        """End the array; also after an error, whose message goes to stderr."""
        if self._as_array:
            print("\n]" if self._count else "[]")

    def write(self, record: Record) -> None:
        """Print one record."""
        text = _json(record, indent=0)
        if self._as_array:
            print("[" if self._count == 0 else ",", text, sep="\n", end="")
        else:
            print(text)
        self._count += 1


# --- for people ------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> "Console":
    """Return a console that takes every text literally: no markup, no emoji codes, no guessed colours."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def table(*headers: str, right: Sequence[str] = ()) -> "Table":
    """Return an empty table; columns of `right` are aligned right."""
    from rich.table import Table

    made = Table(box=None, padding=(0, COLUMN_GAP, 0, 0), header_style="bold", show_edge=False)
    for header in headers:
        made.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return made


def fit(made: "Table", width: int, *headers: str) -> None:
    """Make a full table at most so wide, by narrowing these columns alone: half an id is no id."""
    from rich.cells import cell_len

    for column in made.columns:
        column.width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    shrinking = [column for column in made.columns if column.header in headers]
    excess = sum((column.width or 0) + COLUMN_GAP for column in made.columns) - width
    for _ in range(excess):
        widest = max(shrinking, key=lambda column: column.width or 0)
        widest.width = max((widest.width or 0) - 1, NARROWEST)


def note(text: str) -> None:
    """Say something about the work on stderr, where it is in nobody's way."""
    print(one_line(text), file=sys.stderr)


@contextmanager
def progress(what: str, total: float | None = None, *, unit: str = "letters", shown: bool = True) -> Generator["Bar"]:
    """Show a bar on stderr while the block runs; nothing at all when stderr is no terminal.

    Without a unit it shows the share alone.
    """
    screen = console(stderr=True)
    if not (shown and screen.is_terminal):
        yield Bar(None)
        return
    from rich import progress as rich

    counted = f"{{task.completed:.0f}} {unit}" if unit else ""
    columns = [
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f}%") if total else rich.SpinnerColumn(),
        rich.DownloadColumn() if unit == "bytes" else rich.TextColumn(counted, markup=False),
        rich.TimeElapsedColumn(),
    ]
    # What is printed on stdout must stay there: rich would send it where the bar is.
    with rich.Progress(*columns, console=screen, transient=True, redirect_stdout=False) as running:
        yield Bar(running, running.add_task(what, total=total))


class Bar:
    """A progress bar, or none."""

    def __init__(self, running: "Progress | None", task: Any = None) -> None:
        self._running, self._task = running, task

    def advance(self, by: float = 1) -> None:
        """Move on."""
        if self._running is not None:
            self._running.advance(self._task, by)

    def to(self, done: float) -> None:
        """Move to this point."""
        if self._running is not None:
            self._running.update(self._task, completed=done)


# --- times -----------------------------------------------------------------------------------------------


def when(ms: int | None) -> str | None:
    """Return a Unix time in ms as RFC 3339 in UTC; None for none."""
    if not ms:
        return None
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # a stranger's entry may say anything
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(seconds: float) -> str:
    """Return a duration as people say it: ``12s``, ``4m``, ``3h``, ``5d``."""
    seconds = max(seconds, 0)
    for unit, length, until in (("s", 1, 60), ("m", 60, 3600), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"
