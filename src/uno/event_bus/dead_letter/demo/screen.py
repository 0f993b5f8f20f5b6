"""What the demo shows while it runs: bars and a few stories on a terminal, short lines elsewhere."""

import sys
from time import monotonic
from typing import Any, Final, Self, TextIO, override

from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.demo.journal import Key, Note, Outcome
from uno.event_bus.dead_letter.demo.pages import note_line, stats_line, word_of
from uno.event_bus.dead_letter.demo.shop import CONSUMER, failures_of

__all__ = ["LiveScreen", "Screen", "Stories"]

MOST_STEPS: Final = 48
"""Steps of letters' lives that are shown at most."""

BAR_WIDTH: Final = 36
"""Columns; name and numbers beside it keep within 80."""

BOOKS_S: Final = 1.0
"""Without a terminal, the books are told this often, seconds."""


class Stories:
    """Chooses a few letters whose lives are shown whole: the first one of each kind of trouble."""

    def __init__(self) -> None:
        self._kinds: set[tuple[object, ...]] = set()
        self._followed: set[Key] = set()
        self._steps = 0

    def tells(self, note: Note) -> bool:
        """Answer whether to show this step."""
        error_type = note.why.partition(":")[0] if note.outcome is Outcome.FAILED else ""
        kind = (note.subscription, note.outcome, error_type, _fate(note))
        if kind not in self._kinds and note.outcome not in (Outcome.WORKED, Outcome.PARKED):
            self._kinds.add(kind)
            self._followed.add(note.key)
        if note.key not in self._followed or self._steps >= MOST_STEPS:
            return False
        self._steps += 1
        return True


def _fate(note: Note) -> int | None:
    return failures_of(note.event_id) if note.subscription == CONSUMER else 0


class Screen:
    """Short lines, for a pipe or a log; the base of the one for terminals."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = sys.stdout if out is None else out
        self._begun_at = monotonic()
        self._stories = Stories()
        self._next_books_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End what moves; lines may still be said."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._begun_at

    def begin(self) -> None:
        """Count the seconds from now on."""
        self._begun_at = monotonic()

    def say(self, line: str = "", *, style: str = "") -> None:
        """Write one line; the style is for terminals."""
        self.out.write(f"{line}\n")
        self.out.flush()

    def expect(self, letters: int) -> None:
        """Hear how many letters there will be."""

    def step(self, note: Note) -> None:
        """Hear of one run of a handler."""
        if self._stories.tells(note):
            self._tell(note)

    def _tell(self, note: Note) -> None:
        self.say(note_line(note, self.elapsed_s))

    def books(self, stats: QueueStats) -> None:
        """Hear of the queue's books, every now and then."""
        if self.elapsed_s >= self._next_books_s:
            self._next_books_s = self.elapsed_s + BOOKS_S
            self.say(stats_line(stats, self.elapsed_s))


_STYLES: Final = {
    "captured": "cyan",
    "failed": "yellow",
    "later": "yellow",
    "worked": "green",
    "discarded": "magenta",
    "parked": "red",
}


class LiveScreen(Screen):
    """Bars that grow at the bottom of a terminal, stories above them; needs rich (the extra ``cli``)."""

    def __init__(self, out: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(out)
        self._console = Console(file=self.out, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(BAR_WIDTH, style="bright_black"),
            TextColumn("{task.fields[count]}", markup=False),
            console=self._console,
        )
        self._bars: dict[str, Any] = {}
        self._letters = 0

    @override
    def __enter__(self) -> Self:
        self._progress.start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @override
    def say(self, line: str = "", *, style: str = "") -> None:
        """Print one line above the bars, wrapped between words."""
        self._console.print(line, style=style or None)

    @override
    def expect(self, letters: int) -> None:
        """Draw the bars."""
        self._letters = letters
        for name in ("captured", "resolved", "parked", "discarded", "open"):
            self._bars[name] = self._progress.add_task(name, total=letters, count="0")

    @override
    def _tell(self, note: Note) -> None:
        line = note_line(note, self.elapsed_s)
        self._console.print(line, style=_STYLES[word_of(note)], no_wrap=True, overflow="ellipsis", crop=True)

    @override
    def books(self, stats: QueueStats) -> None:
        """Move the bars."""
        is_open = stats.open - stats.parked
        self._move("captured", stats.totals["captured"], f"{stats.totals['captured']:,} of {self._letters:,}")
        self._move("resolved", stats.totals["resolved"], f"{stats.totals['resolved']:,}")
        self._move("parked", stats.parked, f"{stats.parked:,}")
        self._move("discarded", stats.totals["discarded"], f"{stats.totals['discarded']:,}")
        self._move("open", is_open, f"{is_open:,} · {stats.leased:,} leased · {stats.totals['retried']:,} retries")

    def _move(self, name: str, done: int, count: str) -> None:
        self._progress.update(self._bars[name], completed=done, count=count)
