"""A short selection of the fault harness, which `make faults` runs whole: real processes, the checker, one mutant."""

from collections.abc import Iterator

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.places import Places
from tests.faults.rows.registry import ROWS
from tests.faults.trial import run_row, try_mutant
from tests.support.crews import seed_of
from tests.support.standstill import watched

pytestmark = [pytest.mark.timeout(150), pytest.mark.xdist_group("faults")]


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with Places() as made:
        yield made


@pytest.mark.parametrize("name", ["F11-late", "F20-group", "F17-once", "F31-cut"])
def test_a_row_of_the_fault_matrix_keeps_its_promises(places: Places, name: str) -> None:
    with watched(1.0) as stood_still:
        shown = run_row(places, ROWS[name], seed_of(name))
    if shown.is_late and stood_still.total_s:
        shown = run_row(places, ROWS[name], seed_of(name))
    assert shown.verdict == "ok", shown.notes
    assert shown.figures.acknowledged > 20


def test_an_engine_without_its_fence_is_caught(places: Places) -> None:
    """A harness that lets a broken engine pass proves nothing."""
    tried = try_mutant(places, "no-fence", MUTANTS["no-fence"], seed_of("no-fence"))
    assert tried.verdict == "caught", tried.note
