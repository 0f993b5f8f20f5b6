"""A row is run, on the whole engine or on a broken one, and becomes a verdict."""

import time
import traceback
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.mutants import Mutant, broken
from tests.faults.places import Places
from tests.faults.rows.registry import ROWS, Row, Skip
from tests.support.harness.actors import ROOT
from tests.support.harness.checker import Figures
from tests.support.harness.run import Run

__all__ = ["Shown", "Tried", "run_row", "seed_of", "try_mutant"]

MUTANT_TRIES = 2
"""Runs of a mutant's rows, each with another seed, before it counts as survived: chaos shows a bug, or not."""


@dataclass
class Shown:
    """What one row has shown."""

    row: Row
    seed: int
    verdict: str
    """``ok``, ``skipped``, ``FAILED`` (a promise was broken) or ``ERROR`` (the row could not be brought to its end)."""
    took_s: float
    figures: Figures = field(default_factory=Figures)
    may_lose: str = "none"
    """Letters that may be lost: ``none``, those ``in a window``, or ``any``."""
    resumed_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Of the notes, those that made the verdict."""

    @property
    def is_bad(self) -> bool:
        return self.verdict not in ("ok", "skipped")

    @property
    def is_late(self) -> bool:
        """Whether all that was broken is a bound of time: a machine that stands still may break it, too."""
        return bool(self.failures) and all(failure.startswith("resumed after ") for failure in self.failures)


@dataclass
class Tried:
    """What became of one mutant."""

    name: str
    verdict: str
    """``caught``, ``SURVIVED`` or ``skipped``."""
    row: str = ""
    """That caught it, or that ran last."""
    seed: int = 0
    took_s: float = 0.0
    note: str = ""

    @property
    def is_bad(self) -> bool:
        return self.verdict == "SURVIVED"


def seed_of(seed: int, name: str) -> int:
    """The seed of a row: one seed for all of them gives each its own."""
    return zlib.crc32(f"{seed} {name}".encode()) % 1_000_000


def run_row(places: Places, row: Row, seed: int, *, tree: Path = ROOT, keep: bool = False) -> Shown:
    """Run one row; whatever it raises is its verdict."""
    began = time.monotonic()
    try:
        with places.of(row) as place:
            shown = _on(Run(place, row.name, seed, tree), row, keep=keep)
    except Skip as skip:  # its place cannot be made here
        shown = Shown(row, seed, "skipped", 0.0, notes=[str(skip)])
    except Exception as error:
        shown = Shown(row, seed, "ERROR", 0.0, notes=["".join(traceback.format_exception(error))])
    shown.took_s = time.monotonic() - began
    return shown


def _on(run: Run, row: Row, *, keep: bool) -> Shown:
    try:
        row.run(run)
        verdict = "FAILED" if run.failures else "ok"
    except Skip as skip:
        verdict, run.remarks = "skipped", [str(skip)]
    except Exception as error:
        verdict = "ERROR"
        run.failures.append(f"{type(error).__name__}: {error}")
        run.remarks.append("".join(traceback.format_tb(error.__traceback__)[-2:]))
    finally:
        run.close(keep=keep)
    notes = [*run.remarks, *run.failures]
    if run.failures:
        notes += run.figures.examples
    lost = run.promise.lost
    may_lose = lost if isinstance(lost, str) else "none" if lost == 0 else "any"
    return Shown(
        row, run.seed, verdict, 0.0, run.figures, may_lose, max(run.resumed_s, default=0.0), notes, run.failures
    )


def try_mutant(places: Places, name: str, mutant: Mutant, seed: int) -> Tried:
    """Run the mutant's rows until one catches it."""
    began = time.monotonic()
    tried = Tried(name, "skipped")
    with broken(mutant) as tree:
        for attempt in range(MUTANT_TRIES):
            for row in mutant.rows:
                tried.seed, tried.row = seed_of(seed, f"{name} {row} {attempt}"), row
                shown = run_row(places, ROWS[row], tried.seed, tree=tree)
                if shown.verdict == "skipped":
                    tried.note = "; ".join(shown.notes)
                    continue
                caught = [note for note in shown.notes if mutant.is_shown_by(note)] if shown.is_bad else []
                tried.verdict = "caught" if caught else "SURVIVED"
                tried.note = "; ".join(caught or [shown.verdict, *shown.notes])
                tried.took_s = time.monotonic() - began
                if caught:
                    return tried
    return tried
