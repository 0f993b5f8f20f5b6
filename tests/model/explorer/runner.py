"""One run, or many."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final, NamedTuple

from tests.model.explorer.actions import ACTIONS, Plan, Step, draw
from tests.model.explorer.drain import drain
from tests.model.explorer.faults import CLASSES, FAULTS
from tests.model.explorer.model import Violation
from tests.model.explorer.mutants import MUTANTS
from tests.model.explorer.wire import Replacement, Scripts, Wire
from tests.model.explorer.world import CALM, World

__all__ = ["Explorer", "Run", "steps_of"]

STEPS: Final = 45

# The same scripts with small parts a call, so that short runs come to use the cursors.
SMALL_PARTS: Final = (
    Replacement("reclaim", "'COUNT', 100, 'JUSTID'", "'COUNT', 1, 'JUSTID'"),
    Replacement("*", "local MOST, BYTES = 500,", "local MOST, BYTES = 5,"),
)


class Run(NamedTuple):
    """One run, told."""

    seed: int
    fault: str
    mutant: str
    steps: list[Step]
    story: list[str]
    violation: Violation | None

    @property
    def command(self) -> str:
        """The command line that runs it again."""
        mutant = f" --mutant {self.mutant}" if self.mutant else ""
        return f"python -m tests.model.explorer --seed {self.seed} --fault {self.fault}{mutant}"

    def __str__(self) -> str:
        told = [f"{number:3} {line}" for number, line in enumerate(self.story, 1)]
        return "\n".join([*told, f"    !!! {self.violation}" if self.violation else "    clean", self.command])


def steps_of(seed: int, fault: str) -> list[Step]:
    """Draw a run's steps from its seed."""
    rng = Random(f"{seed} {fault}")
    plan = CLASSES[fault]
    actions = ACTIONS | {name: FAULTS[name] for name in plan.faults}
    steps = _crowd(plan) if is_crowded(seed) and plan.pauses else []
    return steps + [draw(rng, plan, actions) for _ in range(rng.randint(STEPS // 3, STEPS))]


def is_crowded(seed: int) -> bool:
    """Whether a run begins with many leases of a worker that lives: others' dead ones lie behind them."""
    return seed % 4 == 3


def _crowd(plan: Plan) -> list[Step]:
    capture = {"again": -1, "count": 8, "delay_ms": 0, "limit": 0, "producer": 0, "chaos": CALM}
    return [
        Step("add", {"key": 100, **capture}),
        Step("add", {"key": 108, **capture}),
        Step("take", {"who": 0, "count": 13, "chaos": CALM}),
        Step("take", {"who": 1, "count": 2, "chaos": CALM}),
    ]


class Explorer:
    """Runs on one server, with the scripts as they are or with a mutant's."""

    def __init__(self, wire: Wire, mutant: str = "", *, plain: bool = False) -> None:
        self._wire = wire
        self._mutant = mutant
        changes: Sequence[Replacement] = MUTANTS[mutant].replacements if mutant else ()
        self._whole = Scripts(wire, changes, plain=plain)
        self._small = Scripts(wire, [*SMALL_PARTS, *changes], plain=plain)

    def run(self, seed: int, fault: str, steps: list[Step] | None = None) -> Run:
        """Run one seed; `steps` are other ones than the seed's, with all else as it is."""
        steps = steps_of(seed, fault) if steps is None else steps
        plan = CLASSES[fault]
        story: list[str] = []
        violation = None
        scripts = self._small if seed % 2 else self._whole
        world = World(self._wire, scripts, keeps_history="failover" in plan.faults)
        try:
            for step in steps:
                story.append(str(step))
                story[-1] = (ACTIONS | FAULTS)[step.name].perform(world, **step.args)
            story.append("the faults stop, and everything is worked off")
            rounds = drain(world)
            story[-1] += f" in {rounds} rounds"
        except Violation as found:
            violation = found
        return Run(seed, fault, self._mutant, steps, story, violation)

    def first_failure(self, seeds: Iterable[int], fault: str) -> Run | None:
        """Return the first run that fails."""
        return next((run for run in (self.run(seed, fault) for seed in seeds) if run.violation), None)
