"""The settler: every outcome is settled once, or it is known and said that it was not."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.support.holding import Records, held, session
from tests.support.waiting import SOON_S
from uno.event_bus.dead_letter.errors import DeadLetterError, LayoutMismatch, QueueFull, StoreError, StoreUnavailable
from uno.event_bus.dead_letter.letter import Verb
from uno.event_bus.dead_letter.store.values import Outcome, Verdict
from uno.event_bus.dead_letter.worker import settler as module
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.settler import Settler

AWAY = StoreUnavailable("refused", certain=True)
UNHEARD = StoreUnavailable("reset")

type Answer = Callable[[Sequence[Outcome]], list[Verdict]] | Exception | Verdict


class FakeShard:
    """Answers each settle with the next of what it was given, and OK after that."""

    tag = "fake"
    index = 0

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []

    async def settle(self, consumer: str, outcomes: Sequence[Outcome]) -> list[Verdict]:
        self.calls.append([outcome.letter_id for outcome in outcomes])
        await anyio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if self.answers else Verdict.OK
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(outcomes) if isinstance(answer, Verdict) else answer(outcomes)


class Settling:
    """A settler at work on a shard that answers so."""

    def __init__(self, *answers: Answer, **settings: Any) -> None:
        self.shard = FakeShard(*answers)
        self.records = Records()
        self.session: Session = session(self.shard, recorder=self.records, **settings)
        self.scheduled: list[float] = []
        self.settler = Settler(self.session, self.shard, lambda shard, delay_s: self.scheduled.append(delay_s))  # type: ignore[arg-type]

    def put(self, *letters: Held, verb: Verb = Verb.RESOLVE, delay_ms: int = 0) -> None:
        self.session.holdings.hold(0, list(letters))
        for letter in letters:
            self.session.holdings.handled(letter)
            self.settler.put(letter, Outcome(letter.letter.id, letter.lease.token, verb, delay_ms))

    @asynccontextmanager
    async def until_empty(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.settler.run)
            yield
            with anyio.fail_after(SOON_S):
                await self.session.holdings.emptied()
            await anyio.sleep(0.005)
            group.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.005)


async def test_outcomes_are_settled_together_and_counted() -> None:
    """A batch a call; each once."""
    settling = Settling(batch_size=10)
    letters = [held(n) for n in range(25)]
    async with settling.until_empty():
        settling.put(*letters)
    assert [len(call) for call in settling.shard.calls] == [10, 10, 5]
    assert sorted(id for call in settling.shard.calls for id in call) == sorted(x.letter.id for x in letters)
    assert (settling.session.report.resolved, settling.session.report.stale) == (25, 0)


async def test_an_outcome_that_comes_alone_does_not_wait_long() -> None:
    """Some ms; nor does it wait for ever for the batch that was cut off before it."""
    settling = Settling(batch_size=10)
    async with settling.until_empty():
        with anyio.fail_after(SOON_S):
            for n in range(5):
                settling.put(held(n))
                await settling.session.holdings.emptied()


@pytest.mark.parametrize("error", [AWAY, UNHEARD, QueueFull("q"), LayoutMismatch("q", "layout epoch", 1, 2, "restart")])
async def test_outcomes_wait_while_redis_is_away(error: DeadLetterError) -> None:
    """Every one is settled once it is back; meanwhile it is held."""
    settling = Settling(error, error, error)
    async with settling.until_empty():
        settling.put(held(1), held(2), verb=Verb.RETRY, delay_ms=1500)
    assert [len(call) for call in settling.shard.calls] == [2, 2, 2, 2]
    assert settling.session.report.retried == 2
    assert settling.scheduled == [1.5, 1.5]
    assert len(settling.records.of["store_failed"]) == 3


@pytest.mark.parametrize("verdict", [Verdict.LOST, Verdict.GONE])
async def test_a_refusal_of_the_first_call_is_stale(verdict: Verdict, caplog: pytest.LogCaptureFixture) -> None:
    """The lease was another's: also when Redis was away before, and certainly had settled nothing."""
    settling = Settling(AWAY, verdict)
    async with settling.until_empty():
        settling.put(held(1), held(2))
    report = settling.session.report
    assert (report.resolved, report.stale, report.unknown) == (0, 2, 0)
    assert settling.records.of["stale_settles"] == [2]
    assert "unknown_settles" not in settling.records.of
    assert caplog.text.count("2 outcomes came after their leases were over") == 1


@pytest.mark.parametrize("verdict", [Verdict.LOST, Verdict.GONE])
async def test_a_refusal_after_a_call_without_an_answer_is_unknown(
    verdict: Verdict, caplog: pytest.LogCaptureFixture
) -> None:
    """This process may have settled the letter itself: nobody can tell, and nobody says that its lease was lost."""
    settling = Settling(UNHEARD, AWAY, lambda outcomes: [Verdict.OK, verdict, verdict])
    async with settling.until_empty():
        settling.put(held(1), held(2), held(3))
    report = settling.session.report
    assert (report.resolved, report.stale, report.unknown) == (1, 0, 2)
    assert settling.records.of["unknown_settles"] == [2]
    assert "stale_settles" not in settling.records.of
    assert caplog.text.count("2 outcomes were settled or lost, not known which") == 1
    assert "came after their leases" not in caplog.text
    assert str(report).endswith("stale 0, unknown 2")


async def test_a_call_without_an_answer_taints_no_later_batch() -> None:
    """What comes after it is as certain as ever."""
    settling = Settling(UNHEARD, Verdict.GONE, Verdict.GONE)
    async with settling.until_empty():
        settling.put(held(1))
        await settling.session.holdings.emptied()
        settling.put(held(2))
    assert (settling.session.report.unknown, settling.session.report.stale) == (1, 1)


@pytest.mark.parametrize(("error", "known"), [(AWAY, (1, 0)), (UNHEARD, (0, 1))], ids=["away", "unheard"])
async def test_an_outcome_whose_lease_ends_while_redis_is_away_is_given_up_and_counted(
    error: DeadLetterError, known: tuple[int, int]
) -> None:
    """And nothing is sent for it any more; one whose lease lasts is settled all the same."""
    settling = Settling(*[error] * 4)
    async with settling.until_empty():
        settling.put(held(1, lease_s=0.012), held(2))
    assert settling.shard.calls[0] == ["0-1-1", "0-1-2"]
    assert settling.shard.calls[-1] == ["0-1-2"]
    report = settling.session.report
    assert (report.resolved, (report.stale, report.unknown)) == (1, known)


async def test_one_outcome_that_is_refused_for_good_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """They are settled one by one; the refused one is given up, and said."""

    def refuse(outcomes: Sequence[Outcome]) -> list[Verdict]:
        if any(outcome.letter_id == "0-1-2" for outcome in outcomes):
            raise StoreError("no such verb")
        return [Verdict.OK] * len(outcomes)

    settling = Settling(*[refuse] * 4)
    async with settling.until_empty():
        settling.put(held(1), held(2), held(3))
    assert settling.session.report.resolved == 2
    assert "letter 0-1-2: its outcome (resolve) is refused" in caplog.text


async def test_an_outage_is_a_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    """However often it tries meanwhile; also when nothing is left to settle at its end."""
    caplog.set_level(logging.INFO)
    settling = Settling(*[AWAY] * 50)
    async with settling.until_empty():
        settling.put(held(1))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "shard fake: 1 outcomes wait to be settled: refused"
    assert lines[1].startswith("over after") and lines[1].endswith("refused (49 failures were not logged)")
    assert len(lines) == 2
    caplog.clear()
    settling = Settling(*[AWAY] * 50)
    async with settling.until_empty():
        settling.put(held(1, lease_s=0.05))
    assert any(line.startswith("over after") for line in caplog.messages)


async def test_what_was_put_back_as_it_was_counts_as_released() -> None:
    """A letter that a replay could not run, parked as it had been: no letter was parked by that."""
    settling = Settling()
    letter = held(1)
    letter.put_back = True
    async with settling.until_empty():
        settling.put(letter, verb=Verb.PARK)
    assert (settling.session.report.released, settling.session.report.parked) == (1, 0)


async def test_every_verb_is_counted_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that schedule wake the taker; the one that parks calls the hooks."""
    settling = Settling()
    parked: list[str] = []
    monkeypatch.setattr(Session, "parked", lambda self, letter, why: parked.append(f"{letter.id} {why}"))
    async with settling.until_empty():
        for n, verb in enumerate(Verb):
            settling.put(held(n), verb=verb)
    report = settling.session.report
    assert (report.resolved, report.retried, report.parked, report.released, report.discarded) == (1, 1, 1, 1, 1)
    assert len(parked) == 1
    assert len(settling.scheduled) == 2
