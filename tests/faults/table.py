"""The table of what rows and mutants have shown, and the one line that sums it up."""

from collections.abc import Sequence

from tests.faults.trial import Shown, Tried
from tests.support.crews import say

__all__ = ["head", "line", "markdown", "summary", "table"]

COLUMNS = (
    ("row", "<19"),
    ("topology", "<10"),
    ("seed", ">6"),
    ("tries", ">6"),
    ("acked", ">6"),
    ("ok", ">6"),
    ("lost", ">5"),
    ("dup", ">4"),
    ("recov", ">5"),
    ("double", ">6"),
    ("undone", ">6"),
    ("stale", ">5"),
    ("refused", ">7"),
    ("stuck", ">5"),
    ("errors", ">6"),
    ("resumes", ">7"),
    ("took", ">6"),
    ("verdict", "<7"),
)


def head() -> str:
    return " ".join(f"{name:{how}}" for name, how in COLUMNS)


def line(shown: Shown) -> str:
    """One row of the table; `resumes` and `took` are seconds."""
    f = shown.figures
    cells = (
        shown.row.name,
        shown.row.topology,
        shown.seed,
        f.attempts,
        f.acknowledged,
        f.ok,
        f.lost,
        f.duplicated,
        f.recovered,
        f.double_terminal,
        f.undone,
        f.stale_settles,
        f.refused,
        f.stuck,
        f.errors,
        f"{shown.resumed_s:.2f}",
        f"{shown.took_s:.1f}",
        shown.verdict,
    )
    return " ".join(f"{cell!s:{how}}" for cell, (_, how) in zip(cells, COLUMNS, strict=True))


def table(rows: Sequence[Shown], mutants: Sequence[Tried]) -> None:
    """Print the rows, what they remark, and the mutants."""
    if rows:
        say(f"\n{head()}")
    for shown in rows:
        say(line(shown))
    if rows:
        say("")
    for shown in rows:
        if shown.notes:
            say(f"{shown.row.name} ({shown.row.what}): " + "; ".join(shown.notes))
    if mutants:
        say(f"\n{'mutant':<19} {'verdict':<9} {'row':<12} {'seed':>6} {'took':>6}")
    for tried in mutants:
        say(f"{tried.name:<19} {tried.verdict:<9} {tried.row:<12} {tried.seed:>6} {tried.took_s:>6.1f}  {tried.note}")


def markdown(rows: Sequence[Shown]) -> str:
    """Return the table as the README quotes it."""
    lines = [
        "| row | fault | acked | lost | dup | undone | refused | resumes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shown in rows:
        f = shown.figures
        figures = [f.acknowledged, f.lost, f.duplicated, f.undone, f.refused, f"{shown.resumed_s:.1f} s"]
        cells = figures if shown.verdict == "ok" else [shown.verdict, *["–"] * 5]
        lines.append(f"| {shown.row.name} | {shown.row.what} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def summary(rows: Sequence[Shown], mutants: Sequence[Tried], seed: int, took_s: float) -> str:
    """Say in one line what the run has shown."""
    failed = [shown.row.name for shown in rows if shown.is_bad]
    skipped = [shown.row.name for shown in rows if shown.verdict == "skipped"]
    survived = [tried.name for tried in mutants if tried.is_bad]
    sums = {
        name: sum(getattr(shown.figures, name) for shown in rows)
        for name in ("acknowledged", "double_terminal", "stale_settles", "stuck")
    }
    kept = sum(shown.figures.lost for shown in rows if shown.may_lose == "none")
    allowed = sum(shown.figures.lost for shown in rows if shown.may_lose != "none")
    return (
        f"{len(rows)} rows: {_names(failed)} failed, {_names(skipped)} skipped; "
        f"{sums['acknowledged']} acknowledged, {kept} lost (and {allowed} where that is allowed), "
        f"{sums['double_terminal']} double_terminal, {sums['stale_settles']} stale_settles, {sums['stuck']} stuck; "
        f"{len(mutants)} mutants: {_names(survived)} survived; seed {seed}, {took_s:.0f} s: "
        f"{'FAILED' if failed or survived else 'ok'}"
    )


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "0"
