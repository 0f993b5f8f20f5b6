"""The explorer: random runs with faults on the real scripts; and broken scripts, each of which it must catch.

`DLQ_EXPLORER_RUNS=300` runs so many seeds a class (20), from `DLQ_EXPLORER_SEED` on (0).
"""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.model.explorer.faults import CLASSES
from tests.model.explorer.mutants import MUTANTS
from tests.model.explorer.runner import Explorer, steps_of
from tests.model.explorer.shrink import shrunk
from tests.model.explorer.wire import Replacement, Scripts, Wire
from tests.support.servers import Server

RUNS = int(os.environ.get("DLQ_EXPLORER_RUNS", "20"))
FIRST = int(os.environ.get("DLQ_EXPLORER_SEED", "0"))
SEEDS = range(FIRST, FIRST + RUNS)
MUTANT_SEEDS = range(120)

type NewExplorer = Callable[[str], Explorer]


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    wire = Wire(str(server.socket_path))
    yield wire
    wire.close()


@pytest.fixture
def new_explorer(server: Server, wire: Wire) -> NewExplorer:
    """Make an explorer on the server, with the scripts as they are or with a mutant's."""

    def make(mutant: str = "") -> Explorer:
        return Explorer(wire, mutant, plain=server.version < (7, 0))

    return make


@pytest.mark.timeout(60 + RUNS)
@pytest.mark.parametrize("fault", CLASSES)
def test_nothing_breaks(fault: str, new_explorer: NewExplorer) -> None:
    """No letter is stuck or ends twice, no token is given twice, no total drifts, whatever the class of faults."""
    explorer = new_explorer("")
    failed = explorer.first_failure(SEEDS, fault)
    assert failed is None, f"of seeds {SEEDS.start} to {SEEDS.stop - 1}:\n{shrunk(explorer, failed)}"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_variant_is_caught(mutant: str, new_explorer: NewExplorer) -> None:
    """Each known way to break the scripts is found: a green run proves something."""
    explorer = new_explorer(mutant)
    failed = explorer.first_failure(MUTANT_SEEDS, MUTANTS[mutant].fault)
    assert failed is not None, f"{MUTANTS[mutant].what}: not caught by {len(MUTANT_SEEDS)} seeds"


def test_a_seed_tells_the_same_story_each_time(new_explorer: NewExplorer) -> None:
    """A run that failed can be run again."""
    explorer = new_explorer("")
    for seed in range(3):
        assert steps_of(seed, "mixed") == steps_of(seed, "mixed")
        assert explorer.run(seed, "mixed").story == explorer.run(seed, "mixed").story


def test_a_failure_is_shrunk_to_a_short_story(new_explorer: NewExplorer) -> None:
    """What is left fails alike, and each of its steps is needed."""
    explorer = new_explorer("pel-first")
    failed = explorer.first_failure(MUTANT_SEEDS, "aborts")
    assert failed is not None and failed.violation is not None
    short = shrunk(explorer, failed)
    assert short.violation is not None and short.violation.code == failed.violation.code
    assert len(short.steps) < len(failed.steps)
    for i in range(len(short.steps)):
        again = explorer.run(short.seed, short.fault, short.steps[:i] + short.steps[i + 1 :])
        assert again.violation is None or again.violation.code != short.violation.code
    assert f"--seed {failed.seed} --fault aborts --mutant pel-first" in str(short)


def test_a_mutant_that_mutates_nothing_is_refused(wire: Wire) -> None:
    """The text to replace must be there."""
    with pytest.raises(LookupError, match=r"take\.lua has no text"):
        Scripts(wire, [Replacement("take", "no such words", "")])
