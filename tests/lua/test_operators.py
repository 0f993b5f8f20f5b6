"""reschedule, park, hold, discard: they act on a letter that is as the operator saw it, and on no other."""

from collections.abc import Awaitable, Callable

import pytest

from tests.support.look import Look, new, several
from uno.event_bus.dead_letter.letter import LetterState, Verb
from uno.event_bus.dead_letter.store.browse import find
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Answer, Outcome, Seen

NOW_MS = 1_800_000_000_000
TOKEN = NOW_MS * 1000
STATES = tuple(LetterState)

type Operate = Callable[[Shard, list[Seen]], Awaitable[list[Answer]]]
VERBS: dict[str, Operate] = {
    "reschedule": lambda shard, seen: shard.reschedule(seen, delay_ms=7_000),
    "park": lambda shard, seen: shard.park(seen, reason="by hand"),
    "hold": lambda shard, seen: shard.hold(seen, why="a pause"),
    "discard": lambda shard, seen: shard.discard(seen, why="a test order"),
}

OK, CHANGED, LEASED, GONE = Answer.OK, Answer.CHANGED, Answer.LEASED, Answer.GONE
ANSWERS = {
    "reschedule": {"waiting": OK, "leased": LEASED, "scheduled": OK, "suspect": OK, "held": OK, "parked": OK},
    "park": {"waiting": OK, "leased": LEASED, "scheduled": OK, "suspect": OK, "held": OK, "parked": CHANGED},
    "hold": {"waiting": OK, "leased": LEASED, "scheduled": OK, "suspect": CHANGED, "held": CHANGED, "parked": CHANGED},
    "discard": dict.fromkeys(("waiting", "leased", "scheduled", "suspect", "held", "parked"), OK),
}
DESTINATION = {"reschedule": ["schedule"], "park": ["parked"], "hold": ["held"], "discard": []}


async def in_every_state(shard: Shard, look: Look) -> dict[LetterState, Seen]:
    """State → a letter in it, as an operator sees it now."""
    taken = ("leased", "scheduled", "suspect", "held", "parked")
    ids = dict(zip(taken, map(str, await shard.add(several(5, fingerprint="f"))), strict=True))
    await shard.take("w", 5)
    look.age(60_000, [ids["suspect"]])
    await shard.reclaim(lease_ms=30_000, max_crashes=3)
    verbs = {"scheduled": Verb.RETRY, "held": Verb.RETRY, "parked": Verb.PARK}
    await shard.settle("w", [Outcome(ids[name], TOKEN, verb, 60_000, failed=True) for name, verb in verbs.items()])
    await shard.hold([Seen(ids["held"], LetterState.SCHEDULED, NOW_MS + 60_000)])
    (ids["waiting"],) = map(str, await shard.add([new("waiting", fingerprint="f")]))
    seen = {}
    for state in STATES:
        letter = await find(shard, ids[state])
        assert letter is not None and letter.state is state
        seen[state] = Seen(letter.id, letter.state, letter.since_ms)
    return seen


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_answers_by_the_state_of_the_letter(
    verb: str, state: LetterState, shard: Shard, look: Look
) -> None:
    """OK moves it to the verb's place; any other answer leaves it where it is."""
    seen = (await in_every_state(shard, look))[state]
    before = look.where(seen.letter_id)
    (answer,) = await VERBS[verb](shard, [seen])
    assert answer == ANSWERS[verb][state]
    if answer is OK and (verb, state) != ("reschedule", LetterState.SUSPECT):
        assert look.where(seen.letter_id) == DESTINATION[verb]
    else:
        assert look.where(seen.letter_id) == before
    assert (seen.letter_id in look.letters) is (verb != "discard")


@pytest.mark.parametrize("verb", VERBS)
async def test_a_letter_that_has_changed_is_left_alone(verb: str, shard: Shard, look: Look) -> None:
    """Seen in another state, or with another score: CHANGED, and nothing is written."""
    letters = await in_every_state(shard, look)
    await shard.take("w2", 5)  # the one that waited is leased now
    before = look.snapshot()
    for state, seen in letters.items():
        now = LetterState.LEASED if state is LetterState.WAITING else state
        stale = [seen._replace(state=other) for other in STATES if other is not now]
        if now is not LetterState.LEASED:
            stale.append(seen._replace(since_ms=seen.since_ms + 1))
        assert set(await VERBS[verb](shard, stale)) == {CHANGED}
    assert look.snapshot() == before


@pytest.mark.parametrize("verb", VERBS)
async def test_a_letter_that_is_gone_is_gone(verb: str, shard: Shard, look: Look) -> None:
    """Also an id that never was, before and after the mark."""
    letters = await in_every_state(shard, look)
    parked = letters[LetterState.PARKED]
    await shard.discard([parked], why="")
    ahead = Seen("0-18446744073709551615-1", LetterState.WAITING, 0)
    assert await VERBS[verb](shard, [parked, Seen("0-1-1", LetterState.PARKED, 0), ahead]) == [GONE] * 3


async def test_a_redrive_starts_a_new_budget(shard: Shard, look: Look) -> None:
    """From parked: redrives + 1, the failures and crashes so far no longer count; elsewhere nothing is counted."""
    letters = await in_every_state(shard, look)
    named = [letters[state] for state in (LetterState.PARKED, LetterState.SCHEDULED, LetterState.HELD)]
    assert await shard.reschedule(named, delay_ms=7_000) == [OK] * 3
    assert {seen.letter_id for seen in named} == set(look.schedule)
    assert set(look.schedule.values()) == {NOW_MS + 7_000}
    assert look.state[named[0].letter_id] == [1, 1, 0, 0, 1, 1, "", "", 0]
    assert look.state[named[1].letter_id] == [1, 1, 0, 0, 0, 0, "", "", 0]
    assert look.totals["redriven"] == 1


async def test_a_suspect_that_is_rescheduled_still_runs_alone(shard: Shard, look: Look) -> None:
    """Its place does not change, only its time."""
    seen = (await in_every_state(shard, look))[LetterState.SUSPECT]
    assert await shard.reschedule([seen], delay_ms=7_000) == [OK]
    assert look.suspects == {seen.letter_id: NOW_MS + 7_000}


async def test_a_parked_letter_keeps_all_and_says_why(shard: Shard, look: Look) -> None:
    """Reason, counters; counted in the total."""
    seen = (await in_every_state(shard, look))[LetterState.SCHEDULED]
    parked_before = look.totals["parked"]
    assert await shard.park([seen], reason="by hand") == [OK]
    assert look.state[seen.letter_id] == [1, 1, 0, 0, 0, 0, "by hand", "", 0]
    assert look.parked[seen.letter_id] == NOW_MS and look.totals["parked"] == parked_before + 1


async def test_a_held_letter_is_not_due(shard: Shard, look: Look) -> None:
    """It uses no attempt, and comes back by reschedule alone."""
    seen = (await in_every_state(shard, look))[LetterState.HELD]
    assert look.held == {seen.letter_id: NOW_MS}
    shard.now_us = TOKEN + 10**12
    taken = [letter.id for letter in (await shard.take("w2", 10)).letters]
    assert seen.letter_id not in taken and taken
    await shard.reschedule([seen])
    assert [letter.id for letter in (await shard.take("w2", 10)).letters] == [seen.letter_id]


async def test_a_discarded_letter_leaves_nothing_behind(shard: Shard, look: Look) -> None:
    """In whatever state: entry, rows, lease and its place in the error group go, the total counts it."""
    letters = await in_every_state(shard, look)
    assert look.groups == {"f": 6}
    assert await shard.discard(list(letters.values()), why="") == [OK] * 6
    assert (look.letters, look.leases, look.state, look.history) == ([], {}, {}, {})
    assert (look.groups, look.group_info) == ({}, {})
    assert [look.schedule, look.suspects, look.held, look.parked] == [{}] * 4
    assert look.totals["discarded"] == 6


async def test_a_worker_whose_letter_was_discarded_settles_nothing(shard: Shard, look: Look) -> None:
    """GONE: no second end is counted."""
    seen = (await in_every_state(shard, look))[LetterState.LEASED]
    await shard.discard([seen], why="")
    assert await shard.settle("w", [Outcome(seen.letter_id, TOKEN, Verb.RESOLVE)]) == ["GONE"]
    assert "resolved" not in look.totals


@pytest.mark.parametrize("verb", VERBS)
async def test_the_intake_is_run_past_a_waiting_letter_first(verb: str, shard: Shard, look: Look) -> None:
    """No id is claimed ahead of the mark: all before it goes to the schedule."""
    await shard.take("w", 1)
    ids = [str(id) for id in await shard.add([new("a"), new("late", delay_ms=60_000), new("b"), new("c")])]
    assert await VERBS[verb](shard, [Seen(ids[2], LetterState.WAITING, 0)]) == [OK]
    assert look.mark == look.group_position == ids[3]
    assert look.where(ids[2]) == DESTINATION[verb]
    others = {id: due for id, due in look.schedule.items() if id != ids[2]}
    assert others == {ids[0]: NOW_MS, ids[1]: NOW_MS + 60_000, ids[3]: NOW_MS}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_letter_far_ahead_is_reached_by_calling_again(verb: str, shard: Shard, look: Look) -> None:
    """500 entries a call: AHEAD until the intake has come to it, then OK."""
    ids = [str(id) for id in await shard.add(several(1000)) + await shard.add(several(200, "more"))]
    seen = [Seen(ids[0], LetterState.WAITING, 0), Seen(ids[1150], LetterState.WAITING, 0)]
    assert await VERBS[verb](shard, seen) == [OK, Answer.AHEAD]
    assert await VERBS[verb](shard, seen[1:]) == [Answer.AHEAD]
    assert await VERBS[verb](shard, seen[1:]) == [OK]
    assert look.where(ids[1150]) == DESTINATION[verb] and look.leases == {}


async def test_a_letter_that_another_intake_passed_has_changed(shard: Shard, look: Look) -> None:
    """Seen waiting, scheduled by somebody else since: the operator looks again."""
    (id,) = map(str, await shard.add([new("a", delay_ms=60_000)]))
    await shard.take("w", 5)
    assert await shard.park([Seen(id, LetterState.WAITING, 0)], reason="") == [CHANGED]


async def test_a_letter_that_is_named_twice_is_moved_once(shard: Shard, look: Look) -> None:
    """The second row sees what the first one did."""
    letters = await in_every_state(shard, look)
    seen = letters[LetterState.SCHEDULED]
    assert await shard.park([seen, seen], reason="") == [OK, CHANGED]
    assert await shard.discard([letters[LetterState.HELD]] * 2, why="") == [OK, GONE]
    assert look.totals["discarded"] == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "row",
    [["1-1"], ["1-1", "parked"], ["no id", "parked", 0], ["1", "parked", 0], ["", "parked", 0], ["1-1-1", "x", 0]],
)
async def test_a_malformed_row_refuses_the_whole_call(
    row: list[str | int], verb: str, shard: Shard, look: Look
) -> None:
    """Also the good row before it: no letter moves."""
    seen = (await in_every_state(shard, look))[LetterState.SCHEDULED]
    await shard.take("w2", 5)
    before = look.snapshot()
    good: list[str | int] = [seen.letter_id.removeprefix("0-"), "scheduled", seen.since_ms]
    with pytest.raises(Exception, match=r"rows of 3|not the id of a letter"):
        await shard.call(verb, [0, *good, *row])
    assert look.snapshot() == before


@pytest.mark.parametrize("delay", ["", "soon", "inf", "nan"])
async def test_a_delay_that_is_no_number_is_refused(delay: str, shard: Shard, look: Look) -> None:
    """Nothing is scheduled for never."""
    seen = (await in_every_state(shard, look))[LetterState.PARKED]
    before = look.snapshot()
    with pytest.raises(Exception, match="delay"):
        await shard.call("reschedule", [delay, seen.letter_id.removeprefix("0-"), "parked", seen.since_ms])
    assert look.snapshot() == before
