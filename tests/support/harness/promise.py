"""What a run promises, and what of that its figures break."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.support.harness.checker import Figures

__all__ = ["Promise"]


@dataclass
class Promise:
    """The most that a run may show; None: any number, it is counted.

    `double_terminal`, `stale_settles`, `stuck` and `unexpected` are promised to be 0 in every run.
    """

    lost: int | Literal["in a window"] | None = 0
    """``in a window``: any number, of captures that were acknowledged while a fault could undo them."""
    duplicated: int | None = None
    errors: int | None = None
    crashed: int | None = None
    orphaned: int | None = None
    lost_externally: int | None = 0
    resumes_s: float | None = None
    """Seconds after a fault within which each shard gives letters again."""

    def broken(self, figures: Figures, totals: dict[str, int], resumed_s: Sequence[float]) -> list[str]:
        """Return a line for each figure that is too high, and what does not add up."""
        in_windows = self.lost == "in a window"
        most: dict[str, tuple[int, int | None]] = {
            "lost": (figures.lost, None if isinstance(self.lost, str) else self.lost),
            "lost outside of every window": (figures.lost_outside, 0 if in_windows else None),
            "duplicated": (figures.duplicated, self.duplicated),
            "errors": (figures.errors, self.errors),
            "crashed": (totals["crashed"], self.crashed),
            "orphaned": (totals["orphaned"], self.orphaned),
            "lost_externally": (totals["lost_externally"], self.lost_externally),
            "double_terminal": (figures.double_terminal, 0),
            "stale_settles": (figures.stale_settles, 0),
            "stuck": (figures.stuck, 0),
            "unexpected": (figures.unexpected, 0),
        }
        lines = [
            f"{name} is {found}, promised {limit}"
            for name, (found, limit) in most.items()
            if limit is not None and found > limit
        ]
        slowest = max(resumed_s, default=0.0)
        if self.resumes_s is not None and slowest > self.resumes_s:
            lines.append(f"resumed after {slowest:.2f} s, promised {self.resumes_s:g}")
        return [*lines, *figures.books]
