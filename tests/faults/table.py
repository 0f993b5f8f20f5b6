"""Rows run one after the other, and the table of what they have shown."""

import time
import traceback
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.places import Places
from tests.faults.rows.registry import Row, Skip
from tests.support.crews import say
from tests.support.harness.actors import ROOT
from tests.support.harness.checker import Figures
from tests.support.harness.run import Run

__all__ = ["Shown", "run_row", "seed_of", "table"]


@dataclass
class Shown:
    """What one row has shown."""

    row: Row
    seed: int
    verdict: str
    took_s: float
    figures: Figures = field(default_factory=Figures)
    resumed_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        return self.verdict not in ("ok", "skipped")


def seed_of(seed: int, row: Row) -> int:
    """The seed of a row: one seed for all of them gives each its own."""
    return zlib.crc32(f"{seed} {row.name}".encode()) % 1_000_000


def run_row(places: Places, row: Row, seed: int, *, tree: Path = ROOT, keep: bool = False) -> Shown:
    """Run one row; whatever it raises is its verdict."""
    began = time.monotonic()
    try:
        with places.of(row) as place:
            run = Run(place, row.name, seed, tree)
            try:
                row.run(run)
                verdict = "FAILED" if run.failures else "ok"
            except Skip as skip:
                verdict, run.remarks = "skipped", [str(skip)]
            except Exception as error:
                verdict = "ERROR"
                run.failures.append(f"{type(error).__name__}: {error}")
                run.failures.append("".join(traceback.format_tb(error.__traceback__)[-2:]))
            finally:
                run.close(keep=keep)
    except Skip as skip:  # its place cannot be made here
        return Shown(row, seed, "skipped", time.monotonic() - began, notes=[str(skip)])
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return Shown(row, seed, "ERROR", time.monotonic() - began, notes=[text])
    notes = [*run.remarks, *run.failures]
    if run.failures:
        notes += run.figures.examples
    took_s = time.monotonic() - began
    return Shown(row, seed, verdict, took_s, run.figures, max(run.resumed_s, default=0.0), notes)


HEADS = (
    ("row", "<19"),
    ("topology", "<11"),
    ("seed", ">7"),
    ("tries", ">6"),
    ("acked", ">6"),
    ("ok", ">6"),
    ("lost", ">5"),
    ("dup", ">4"),
    ("recov", ">6"),
    ("double", ">7"),
    ("undone", ">7"),
    ("stale", ">6"),
    ("refused", ">8"),
    ("stuck", ">6"),
    ("errors", ">7"),
    ("resumes", ">8"),
    ("took", ">6"),
    ("verdict", "<8"),
)


def head() -> str:
    return " ".join(f"{name:{how}}" for name, how in HEADS)


def line(shown: Shown) -> str:
    f = shown.figures
    cells = (
        shown.row.name, shown.row.topology, shown.seed, f.attempts, f.acknowledged, f.ok, f.lost, f.duplicated,
        f.recovered, f.double_terminal, f.undone, f.stale_settles, f.refused, f.stuck, f.errors,
        f"{shown.resumed_s:.2f}", f"{shown.took_s:.1f}", shown.verdict,
    )  # fmt: skip
    return " ".join(f"{cell!s:{how}}" for cell, (_, how) in zip(cells, HEADS, strict=True))


def table(all_shown: Iterable[Shown]) -> None:
    """Print the table, what bad rows say, and one line of summary."""
    all_shown = list(all_shown)
    say(head())
    for shown in all_shown:
        say(line(shown))
    say("")
    for shown in all_shown:
        if shown.notes:
            say(f"{shown.row.name} ({shown.row.what}): " + "; ".join(shown.notes))
    bad = [shown for shown in all_shown if shown.is_bad]
    skipped = [shown.row.name for shown in all_shown if shown.verdict == "skipped"]
    sums = {
        name: sum(getattr(shown.figures, name) for shown in all_shown)
        for name in ("acknowledged", "double_terminal", "stale_settles", "stuck")
    }
    promised = sum(shown.figures.lost for shown in all_shown if shown.is_bad)
    allowed = sum(shown.figures.lost for shown in all_shown if not shown.is_bad)
    say(
        f"{len(all_shown)} rows in {sum(shown.took_s for shown in all_shown):.0f} s: {len(bad)} failed"
        f"{' (' + ', '.join(shown.row.name for shown in bad) + ')' if bad else ''}, {len(skipped)} skipped"
        f"{' (' + ', '.join(skipped) + ')' if skipped else ''}; acknowledged {sums['acknowledged']}, "
        f"lost {promised} against a promise and {allowed} where the level allows it, "
        f"double_terminal {sums['double_terminal']}, stale_settles {sums['stale_settles']}, stuck {sums['stuck']}"
    )
