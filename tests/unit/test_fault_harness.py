"""The fault harness's checker: what it counts in histories written by hand."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.mutants import MUTANTS, Change, broken
from tests.faults.rows.registry import in_order
from tests.support.harness.checker import EndState, Figures, check
from tests.support.harness.history import Line
from tests.support.harness.promise import Promise

LETTER = "0-100-0"
TOTALS = dict.fromkeys(("captured", "resolved", "discarded", "expired", "lost_externally", "crashed", "orphaned"), 0)


class Story:
    """A history: each call is one line, a second after the last."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.now = 10.0

    def tell(self, what: str, event: str = "", letter: str = "", token: int = 0, note: str = "", **how: Any) -> "Story":
        self.now = how.pop("at", self.now + 1)
        actor = how.pop("actor", "w1")
        self.lines.append(Line(what, self.now, actor, event, letter, token, how.pop("asked_at", self.now - 0.1), note))
        return self

    def captured(self, event: str = "e", letter: str = LETTER) -> "Story":
        return self.tell("invoke", event, actor="p1").tell("ok", event, letter, actor="p1")

    def taken(self, token: int = 1, letter: str = LETTER, actor: str = "w1") -> "Story":
        return self.tell("take", letter=letter, token=token, actor=actor)

    def settled(
        self, token: int = 1, verb: str = "resolve", verdict: str = "OK", letter: str = LETTER, **how: Any
    ) -> "Story":
        self.tell("settling", letter=letter, token=token, note=verb, actor=how.get("actor", "w1"))
        return self.tell("settled", letter=letter, token=token, note=f"{verb} {verdict}", **how)

    def fault(self, note: str, *shards: int) -> "Story":
        return self.tell("fault", "SIGKILL 0", json.dumps(shards) if shards else "", note=note, actor="run")

    def figures(self, *open_: tuple[str, str, str], violations: Sequence[str] = (), totals: Any = None) -> Figures:
        """Check it; `open_` are (letter, event, state) at the end."""
        end = EndState(violations=list(violations), totals=TOTALS | totals if totals else {})
        end.open = {letter: (event, state) for letter, event, state in open_}
        return check(self.lines, end)


def counts(figures: Figures, *names: str) -> tuple[int, ...]:
    return tuple(getattr(figures, name) for name in names)


# -- captures ---------------------------------------------------------------------------------------------


def test_a_capture_that_is_run_and_settled_is_ok() -> None:
    figures = Story().captured().taken().settled().figures(totals={"captured": 1, "resolved": 1})
    assert counts(figures, "attempts", "acknowledged", "ok", "lost", "errors") == (1, 1, 1, 0, 0)
    assert counts(figures, "double_terminal", "stale_settles", "stuck", "duplicated", "refused") == (0, 0, 0, 0, 0)
    assert figures.books == []


def test_an_acknowledged_event_that_is_neither_ended_nor_kept_is_lost() -> None:
    story = Story().captured("gone").captured("kept", "0-101-0").captured("ended", "0-102-0")
    figures = story.settled(letter="0-102-0").figures(("0-101-0", "kept", "parked"))
    assert counts(figures, "acknowledged", "ok", "lost", "lost_outside") == (3, 2, 1, 1)
    assert figures.examples == ["lost gone"]


def test_a_settle_that_was_not_answered_may_have_ended_its_letter_and_one_that_was_refused_has_not() -> None:
    unanswered = Story().captured().taken().tell("settling", letter=LETTER, token=1, note="resolve")
    assert unanswered.figures().lost == 0
    assert Story().captured().taken().settled(verdict="LOST").figures().lost == 1
    # Refused at the second try: the first one, without an answer, may have been it.
    again = Story().captured().taken().tell("settling", letter=LETTER, token=1, note="resolve")
    assert again.settled(verdict="GONE").figures().lost == 0


def test_a_retry_does_not_end_a_letter() -> None:
    assert Story().captured().taken().settled(verb="retry").figures().lost == 1


@pytest.mark.parametrize(
    ("acknowledged_at", "shard", "outside"),
    [(29.5, 0, 0), (30.5, 0, 0), (20.0, 0, 1), (40.0, 0, 1), (30.5, 1, 1)],
    ids=["just before", "within", "long before", "after", "on another shard"],
)
def test_a_loss_is_in_a_window_when_the_fault_could_undo_the_capture(
    acknowledged_at: float, shard: int, outside: int
) -> None:
    story = Story().tell("invoke", "e", at=15.0).tell("ok", "e", f"{shard}-100-0", at=acknowledged_at)
    story.tell("fault", "SIGKILL 0", "[0]", note="begin", at=30.0).tell(
        "fault", "SIGKILL 0", "[0]", note="end", at=31.0
    )
    assert counts(story.figures(), "lost", "lost_outside") == (1, outside)


def test_a_loss_of_what_was_in_a_spool_may_be_of_any_shard() -> None:
    """Nobody knows when it was sent, and where to."""
    story = Story().tell("invoke", "e", at=15.0).tell("ok", "e", "spooled:e", at=16.0)
    assert counts(story.figures(), "lost", "lost_outside") == (1, 1)
    story.fault("begin", 0).fault("end", 0)
    assert counts(story.figures(), "lost", "lost_outside") == (1, 0)


def test_a_capture_of_unknown_outcome_is_recovered_by_a_repeat_or_by_a_run() -> None:
    story = Story().tell("invoke", "repeated").tell("info", "repeated", note="timeout").captured("repeated")
    story.tell("invoke", "there").tell("info", "there").tell("invoke", "nowhere").tell("info", "nowhere")
    figures = story.figures((LETTER, "repeated", "parked"), ("0-101-0", "there", "parked"))
    assert counts(figures, "attempts", "recovered", "unresolved", "errors") == (4, 2, 2, 3)


def test_a_letter_that_runs_another_event_than_was_acknowledged_is_unexpected() -> None:
    assert Story().captured().tell("start", "another", LETTER).figures().unexpected == 1


# -- ends and fences --------------------------------------------------------------------------------------


def test_two_handlers_that_came_to_their_end_are_a_duplicate_and_no_more() -> None:
    story = Story().captured().taken().tell("end", "e", LETTER, 1, note="ok").tell("end", "e", LETTER, 2, note="ok")
    figures = story.taken(2, actor="w2").settled(2, actor="w2").settled(1, verdict="GONE").figures()
    assert counts(figures, "duplicated", "double_terminal", "stale_settles", "refused") == (1, 0, 0, 1)


def test_two_accepted_ends_of_one_letter_are_double() -> None:
    story = Story().captured().taken().taken(2, actor="w2").settled(2, actor="w2").settled(1)
    assert counts(story.figures(), "double_terminal", "undone") == (1, 0)


def test_two_letters_of_one_event_that_both_end_are_double() -> None:
    story = Story().captured().taken().settled().tell("start", "e", "0-200-0").taken(9, "0-200-0")
    assert story.settled(9, letter="0-200-0").figures().double_terminal == 1


def test_an_ended_letter_that_is_still_there_is_double() -> None:
    assert Story().captured().taken().settled().figures((LETTER, "e", "parked")).double_terminal == 1


def test_an_end_that_a_failover_undid_is_no_second_one() -> None:
    story = Story().captured().taken().settled().fault("begin", 0).taken(2, actor="w2").settled(2, actor="w2")
    figures = story.fault("end", 0).figures()
    assert counts(figures, "double_terminal", "undone") == (0, 1)


def test_a_failover_of_another_shard_undoes_nothing_here() -> None:
    story = Story().captured().taken().settled().fault("begin", 1).taken(2, actor="w2").settled(2, actor="w2")
    assert story.fault("end", 1).figures().double_terminal == 1


def test_a_settle_that_is_taken_after_another_had_the_letter_is_stale() -> None:
    """Asked after the other's `take` was answered: the fence must have known."""
    story = Story().captured().taken().taken(2, actor="w2").settled(1, verb="retry")
    figures = story.figures((LETTER, "e", "scheduled"))
    assert figures.stale_settles == 1
    assert "by token 1 after token 2" in figures.examples[0]


def test_a_settle_that_was_asked_before_another_took_the_letter_may_have_been_first() -> None:
    story = Story().captured().taken().taken(2, actor="w2")
    asked_at = story.now - 0.5
    story.settled(1, verb="retry", asked_at=asked_at)
    assert story.figures((LETTER, "e", "parked")).stale_settles == 0


def test_a_holder_who_finds_its_letter_ended_by_an_earlier_lease_shows_a_stale_settle() -> None:
    """Nobody took the letter after it: whoever ended it had no lease any more."""
    story = Story().captured().taken().taken(2, actor="w2").tell("settling", letter=LETTER, token=1, note="resolve")
    story.settled(2, verdict="GONE", actor="w2")
    assert story.figures().stale_settles == 1


def test_a_settle_that_nobody_was_answered_and_that_ended_a_letter_under_its_holder_is_stale() -> None:
    """The holder's handler is cancelled by its next heartbeat, and nobody takes the letter again."""
    story = Story().captured().taken().tell("settling", letter=LETTER, token=1, note="resolve").taken(2)
    story.tell("end", "e", LETTER, 2, note="cancelled")
    assert story.figures().stale_settles == 1
    assert story.figures((LETTER, "e", "parked")).stale_settles == 0
    assert story.taken(3).settled(3).figures().stale_settles == 0


def test_a_refused_settle_that_was_repeated_may_have_been_taken_the_first_time() -> None:
    story = Story().captured().taken().tell("settling", letter=LETTER, token=1, note="resolve")
    assert counts(story.settled(verdict="GONE").figures(), "stale_settles", "refused") == (0, 1)


# -- leftovers and books ----------------------------------------------------------------------------------


def test_a_letter_that_is_left_in_another_state_than_parked_or_held_is_stuck() -> None:
    story = Story().captured().captured("f", "0-101-0")
    figures = story.figures((LETTER, "e", "scheduled"), ("0-101-0", "f", "parked"))
    assert figures.stuck == 1
    assert figures.examples == [f"stuck: e, {LETTER} is scheduled"]


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        ({"captured": 2, "resolved": 1}, "captured 2 is not 1 gone and 0 open"),
        ({"captured": 2, "resolved": 2}, "resolved 2, by the histories 1 to 1"),
        ({"captured": 3, "resolved": 1, "lost_externally": 2}, "captured 3, by the histories 1 to 1"),
    ],
)
def test_totals_that_do_not_fit_the_histories_are_told(totals: dict[str, int], said: str) -> None:
    assert said in Story().captured().taken().settled().figures(totals=totals).books


def test_totals_that_a_failover_may_have_undone_are_compared_with_themselves_only() -> None:
    story = Story().captured().fault("begin", 0).fault("end", 0).taken().settled()
    assert story.figures(totals={"captured": 7, "resolved": 7}).books == []


def test_what_the_run_deleted_itself_explains_what_follows() -> None:
    """A settle that finds no entry is no sign of another's, and one that is accepted resolves nothing."""
    gone = Story().captured().taken().tell("deleted", letter=LETTER, actor="run").settled(verdict="GONE")
    assert counts(gone.figures(), "stale_settles", "refused") == (0, 1)
    accepted = Story().captured().taken().tell("deleted", letter=LETTER, actor="run").settled()
    assert accepted.figures(totals={"captured": 1, "lost_externally": 1}).books == []


def test_what_verify_finds_is_told() -> None:
    assert Story().figures(violations=["I1 0-1-0"]).books == ["I1 0-1-0"]


# -- promises ---------------------------------------------------------------------------------------------


def test_a_promise_names_each_figure_that_is_too_high() -> None:
    figures = Figures(lost=2, stale_settles=1, errors=9, books=["does not add up"])
    said = Promise(errors=3, resumes_s=2.0).broken(figures, TOTALS | {"lost_externally": 4}, [0.5, 2.5])
    assert said == [
        "lost is 2, promised 0",
        "errors is 9, promised 3",
        "lost_externally is 4, promised 0",
        "stale_settles is 1, promised 0",
        "resumed after 2.50 s, promised 2",
        "does not add up",
    ]


def test_a_promise_to_lose_in_windows_only_minds_the_other_losses() -> None:
    promise = Promise(lost="in a window")
    assert promise.broken(Figures(lost=5), TOTALS, []) == []
    assert promise.broken(Figures(lost=5, lost_outside=1), TOTALS, []) == [
        "lost outside of every window is 1, promised 0"
    ]


# -- mutants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fits_the_sources_and_names_rows_that_there_are(name: str) -> None:
    mutant = MUTANTS[name]
    assert set(mutant.rows) <= {row.name for row in in_order()}
    with broken(mutant) as tree:
        for change in mutant.changes:
            assert not change.new or change.new in (tree / change.path).read_text("utf-8")


def test_a_change_that_does_not_fit_exactly_once_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"lua/add.lua has 'local' \d+ times, not once"),
        broken(MUTANTS["forgetful"]._replace(changes=(Change("lua/add.lua", "local", ""),))),
    ):
        pass
