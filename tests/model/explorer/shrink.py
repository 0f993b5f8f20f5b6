"""The shortest story that still fails: steps are left out as long as the same violation is found."""

from tests.model.explorer.actions import Step
from tests.model.explorer.runner import Explorer, Run

__all__ = ["shrunk"]


def shrunk(explorer: Explorer, failed: Run) -> Run:
    """Leave out ever smaller parts of a failed run (delta debugging); return the shortest that fails alike."""
    best = failed
    size = max(len(best.steps) // 2, 1)
    while True:
        smaller = _without_a_part(explorer, best, size)
        if smaller is not None:
            best = smaller
        elif size == 1:
            return best
        else:
            size //= 2


def _without_a_part(explorer: Explorer, run: Run, size: int) -> Run | None:
    for start in reversed(range(0, len(run.steps), size)):
        steps: list[Step] = run.steps[:start] + run.steps[start + size :]
        again = explorer.run(run.seed, run.fault, steps)
        if again.violation and run.violation and again.violation.code == run.violation.code:
            return again
    return None
