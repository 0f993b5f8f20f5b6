"""Operators' verbs on many letters at once: in batches, as they were seen, with an answer for each."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.waiting import running
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterQueue,
    LetterNotFound,
    LetterState,
    LetterStateConflict,
    StoreUnavailable,
    Where,
    acting_as,
)
from uno.event_bus.dead_letter import bulk as bulk_module
from uno.event_bus.dead_letter.bulk import Answered
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Answer, Seen


async def states(queue: DeadLetterQueue) -> Counter[LetterState]:
    return Counter([letter.state async for letter in queue.letters()])


async def park_all(queue: DeadLetterQueue) -> None:
    for shard in (await queue._store()).shards:
        letters = [letter async for letter in queue.letters() if letter.id.startswith(f"{shard.index}-")]
        for at in range(0, len(letters), 500):
            page = [await queue.get(letter.id) for letter in letters[at : at + 500]]
            answers = await shard.park([Seen(one.id, one.state, one.since_ms) for one in page], reason="test")
            assert set(answers) == {Answer.OK}


def calls(place: Place) -> int:
    """How many scripts the nodes have run."""
    rows = [row for client in place.clients() for row in client.info("commandstats").items()]
    return sum(row["calls"] - row["failed_calls"] for name, row in rows if name.startswith("cmdstat_eval"))


# -- answers ----------------------------------------------------------------------------------------------


async def test_each_named_letter_gets_its_answer(queues: Queues) -> None:
    """Done, leased, not found; what is no id is not found either. A parked letter gets a new budget."""
    queue = queues(shards=2)
    ids = await queue.add_many(list(range(8)), delay=3600)
    await queue.park(ids[0], "test")
    home = next(shard for shard in (await queue._store()).shards if ids[1].startswith(f"{shard.index}-"))
    await home.take("somebody", 1, ids=[ids[1]])
    await queue.discard(ids[2], "test")
    strange = ["7-1-1", "nonsense", "", "0-" + "9" * 5000 + "-0", "0-99999999999999999999999-0"]
    heard: list[Answered] = []
    report = await queue.retry_many([*ids, ids[0], *strange], on_answers=heard.extend)
    assert (report.done, report.changed, report.leased, report.not_found) == (6, 0, 1, 6)
    assert report.answers == {one.letter_id: one.answer for one in heard}
    assert report.answers[ids[1]] is Answer.LEASED
    assert {id for id, answer in report.answers.items() if answer is Answer.GONE} == {ids[2], *strange}
    errors = {one.letter_id: one.error for one in heard}
    assert errors[ids[0]] is None
    conflict = errors[ids[1]]
    assert isinstance(conflict, LetterStateConflict) and (conflict.verb, conflict.state) == ("retry", "leased")
    assert isinstance(errors[ids[2]], LetterNotFound)
    assert (await queue.get(ids[0])).counters.redrives == 1
    report = await queue.discard_many(ids, "test")
    assert (report.done, report.not_found) == (7, 1), "also the one that is leased"
    await home.reclaim(lease_ms=0, max_crashes=3)


async def test_a_filter_reaches_every_letter_that_matches_and_no_other(queues: Queues) -> None:
    """Over all pages of all shards."""
    queue = queues(shards=2)
    await queue.add_many(list(range(1500)), type="a", delay=3600)
    await queue.add_many(list(range(1500)), type="b", delay=3600)
    report = await queue.discard_many({"type": "a"}, "test")
    assert (report.done, report.changed, report.not_found, report.answers) == (1500, 0, 0, {})
    assert Counter([letter.type async for letter in queue.letters()]) == {"b": 1500}
    assert (await queue.retry_many(Where(type="b"), delay=60)).done == 1500
    stats = await queue.stats()
    assert (stats.open, stats.scheduled, stats.totals["discarded"]) == (1500, 1500, 1500)


async def test_waiting_letters_are_all_reached_though_the_verb_itself_runs_the_intake_past_them(
    queues: Queues,
) -> None:
    """Each call makes up to 500 letters scheduled, also such that it does not name."""
    queue = queues(shards=1)
    await queue.add_many(list(range(1300)), type="a", delay=0)
    await queue.add_many(list(range(1300)), type="b", delay=3600)
    assert (await queue.retry_many(Where(state="waiting", type="b"), delay=7200)).done == 1300
    assert (await queue.discard_many(Where(state="waiting"), "test")).done == 0, "they were taken in by now"


async def test_a_filter_for_waiting_letters_means_none_that_was_scheduled_before(queues: Queues) -> None:
    """By the mark of the beginning, also where parked ones are meant, too."""
    queue = queues(shards=1)
    queue.set_retry_policy(3600)
    queue.add_handler(_fail)
    ids = await queue.add_many([1, 2, 3], delay=0)
    await queue.add(4, delay=3600)
    await queue.process()
    await queue.park(ids[0], "test")
    assert await states(queue) == {LetterState.SCHEDULED: 3, LetterState.PARKED: 1}
    await queue.add_many(list(range(700)), delay=0)
    where = Where(state=["waiting", "parked"])
    assert (await queue.discard_many(where, "test", dry_run=True)).done == 701
    assert (await queue.discard_many(where, "test")).done == 701
    assert await states(queue) == {LetterState.SCHEDULED: 3}


async def _fail(event: Any) -> None:
    raise ValueError


@pytest.mark.parametrize("how", ["ids", "filter"])
async def test_letters_go_in_batches(queues: Queues, place: Place, how: str) -> None:
    """2,000 of one shard: one call to look at 500, and one to act on them; two for the audit stream, in all."""
    queue = queues(shards=1)
    ids = await queue.add_many(list(range(2000)), delay=3600)
    before = calls(place)
    report = await queue.discard_many(ids if how == "ids" else {}, "test")
    assert report.done == 2000
    assert calls(place) - before <= (52 if how == "ids" else 12)


async def test_letters_that_lie_far_apart_are_found_one_by_one(queues: Queues, place: Place) -> None:
    """And those between them are not read."""
    queue = queues(shards=1)
    ids = await queue.add_many(list(range(3000)), delay=3600)
    ids.sort(key=lambda id: tuple(map(int, id.split("-"))))
    before = calls(place)
    assert (await queue.retry_many([ids[2999], ids[0], ids[1500]])).done == 3
    assert calls(place) - before < 12


# -- what changes meanwhile -------------------------------------------------------------------------------


def disturbed(monkeypatch: pytest.MonkeyPatch, verb: str, stroke: Callable[[], Awaitable[object]]) -> None:
    """Have something happen between the look at letters and the first call of a verb on them."""
    act = getattr(Shard, verb)
    strokes = [stroke]

    async def disturbing(shard: Shard, letters: Sequence[Seen], **how: Any) -> list[Answer]:
        while strokes:
            await strokes.pop()()
        return await act(shard, letters, **how)

    monkeypatch.setattr(Shard, verb, disturbing)


async def test_a_letter_that_does_not_match_any_more_is_left_as_it_is(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another operator has sent it back: it is no parked letter to be discarded."""
    queue = queues(shards=1)
    ids = await queue.add_many([1, 2, 3], delay=3600)
    await park_all(queue)
    disturbed(monkeypatch, "discard", lambda: queue.retry(ids[1], delay=60))
    report = await queue.discard_many({"state": "parked"}, "test")
    assert (report.done, report.changed) == (2, 1)
    assert (await queue.get(ids[1])).state is LetterState.SCHEDULED


async def test_a_named_letter_that_has_changed_is_looked_at_again(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is meant whatever its state; one that is gone by then is not found."""
    queue = queues(shards=1)
    ids = await queue.add_many([1, 2, 3], delay=3600)
    await park_all(queue)

    async def stroke() -> None:
        await queue.retry(ids[1], delay=60)
        await queue.discard(ids[2], "test")

    disturbed(monkeypatch, "discard", stroke)
    report = await queue.discard_many(ids, "test")
    assert report.answers == {ids[0]: Answer.OK, ids[1]: Answer.OK, ids[2]: Answer.GONE}


async def test_a_letter_that_keeps_changing_is_left_in_the_end(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its answer says so."""
    queue = queues(shards=1)
    id = await queue.add(1, delay=3600)
    looks = 0

    async def never_the_same(shard: Shard, letters: Sequence[Seen], **how: Any) -> list[Answer]:
        nonlocal looks
        looks += 1
        return [Answer.CHANGED] * len(letters)

    monkeypatch.setattr(Shard, "discard", never_the_same)
    with pytest.raises(LetterStateConflict, match="it changed meanwhile; call again"):
        await queue.discard(id, "test")
    assert looks == bulk_module.LOOKS + 1


async def test_a_letter_past_the_mark_is_reached_however_far_it_lies(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To wait for the intake is no look at a letter that keeps changing."""
    monkeypatch.setattr(bulk_module, "LOOKS", 1)
    queue = queues(shards=1)
    ids = await queue.add_many(list(range(3000)), delay=0)
    await queue.discard(max(ids, key=lambda id: tuple(map(int, id.split("-")))), "test")
    stats = await queue.stats()
    assert (stats.open, stats.waiting, stats.leased) == (2999, 0, 0)


async def test_bulk_verbs_and_workers_at_once_leave_a_clean_queue(queues: Queues) -> None:
    """Every letter ends once: resolved or discarded."""
    queue, worker = queues(shards=2), queues(shards=2, max_retries=1, retry_delay=0.01)

    @worker.handler()
    async def handle(event: int) -> None:
        await anyio.sleep(0.0005)
        if event % 3:
            raise ValueError

    ids = await queue.add_many(list(range(1200)), delay=0)
    discarded = 0
    async with running(worker), anyio.create_task_group() as group:
        group.start_soon(partial(queue.retry_many, ids))
        group.start_soon(partial(queue.retry_many, {"state": ["waiting", "parked"]}))
        discarded += (await queue.discard_many(ids[::4], "test")).done
        while (await queue.stats()).open:
            discarded += (await queue.discard_many({"state": "parked"}, "test")).done
            await anyio.sleep(0.01)
    totals = (await queue.stats()).totals
    assert totals["discarded"] == discarded
    assert totals["resolved"] + discarded == totals["captured"] == 1200


# -- around it --------------------------------------------------------------------------------------------


async def test_a_dry_run_answers_and_changes_nothing(queues: Queues, caplog: pytest.LogCaptureFixture) -> None:
    """By id and by filter; the intake does not move either."""
    queue = queues()
    ids = await queue.add_many(list(range(20)), delay=3600)
    before = await queue.stats()
    caplog.set_level(logging.INFO, "uno.event_bus.dead_letter.auditor")
    by_id = await queue.discard_many([*ids, "0-1-1"], "test", dry_run=True)
    assert (by_id.dry_run, by_id.done, by_id.not_found) == (True, 20, 1)
    assert (await queue.retry_many({"state": "waiting"}, dry_run=True)).done == 20
    after = await queue.stats()
    assert (after.totals, after.waiting) == (before.totals, before.waiting)
    assert not caplog.records


async def test_a_verb_logs_its_intent_before_and_its_outcome_after(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    """Which letters, why, who; also when it fails. Nothing of what is in a letter; a line end begins no new line."""
    queue = queues()
    id, *ids = await queue.add_many([{"card": "4111"}, 1, 2], type="a", delay=3600)
    caplog.set_level(logging.INFO, "uno.event_bus.dead_letter.auditor")
    with acting_as("oncall", "r-1"):
        await queue.discard(id, "test data\nroot: all is well")
        with pytest.raises(LetterNotFound):
            await queue.discard(id, "again")
        await queue.discard_many({"type": "a", "subscription": ["", "s"]}, "cleared")
        await queue.retry_many(ids, delay=5)
    by, one = "by 'oncall', request 'r-1'", f'queue default: discard of {{"ids":["{id}"]}}'
    some = 'queue default: discard of {"where":{"type":["a"],"subscription":["","s"]}}'
    named = 'queue default: retry of {"ids":["' + '","'.join(ids) + '"]}'
    assert caplog.messages == [
        f"{one}, 'test data\\nroot: all is well', {by}: begins",
        f"{one}, 'test data\\nroot: all is well', {by}: done: 1 done, 0 changed, 0 leased, 0 not found",
        f"{one}, 'again', {by}: begins",
        f"{one}, 'again', {by}: letter_not_found: 0 done, 0 changed, 0 leased, 1 not found",
        f"{some}, 'cleared', {by}: begins",
        f"{some}, 'cleared', {by}: done: 2 done, 0 changed, 0 leased, 0 not found",
        f"{named}, due after 5 s, {by}: begins",
        f"{named}, due after 5 s, {by}: done: 0 done, 0 changed, 0 leased, 2 not found",
    ]


async def test_an_outage_ends_the_work_and_its_report_is_logged(
    queues: Queues, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """What was heard until then is done; to repeat the call does the rest."""
    with Proxy(place.url) as proxy:
        queue, producer = queues(proxy.redis, shards=1, operation_timeout=3.0), queues(shards=1)
        await producer.add_many(list(range(1200)), delay=3600)
        heard: list[Answered] = []

        def hear(answers: Sequence[Answered]) -> None:
            heard.extend(answers)
            proxy.silence("discard")

        caplog.set_level(logging.INFO, "uno.event_bus.dead_letter.auditor")
        with pytest.raises(StoreUnavailable):
            await queue.discard_many({}, "test", on_answers=hear)
        proxy.heal()
        assert len(heard) == 500
        assert "store_unavailable: 500 done" in caplog.messages[-1]
        assert (await producer.discard_many({}, "test")).done == 700


@pytest.mark.parametrize("which", ["0-1-1", b"0-1-1", {"typ": "a"}, {"state": []}])
async def test_letters_that_cannot_be_meant_are_refused(queues: Queues, which: Any) -> None:
    """One id is not a list of ids: its characters would be."""
    with pytest.raises(ConfigError):
        await queues().discard_many(which, "test")
    with pytest.raises(ConfigError, match="why is None"):
        await queues().discard_many([], None)  # type: ignore[arg-type]


# -- verify -----------------------------------------------------------------------------------------------


async def test_verify_tells_how_far_it_is(queues: Queues) -> None:
    """From 0 to 1, never back."""
    queue = queues(shards=2)
    await queue.add_many(list(range(3000)), delay=3600)
    await queue.retry_many({}, delay=3600)
    heard: list[float] = []
    assert (await queue.verify(on_progress=heard.append)).clean
    assert heard == sorted(heard) and heard[-1] == 1 and 0 < heard[0] < 0.3
    assert len(set(heard)) > 10


async def test_letters_of_strangers_are_a_difference_and_no_violation(queues: Queues, place: Place) -> None:
    """Until the intake comes to them, they are here without having been captured."""
    queue = queues(shards=1)
    await queue.add(1, delay=3600)
    [shard] = (await queue._store()).shards
    place.client.xadd(shard.key("letters"), {"type": "a", "payload": b"1"})
    report = await queue.verify()
    assert (report.clean, report.difference, report.letters, report.captured) == (True, -1, 2, 1)
    await queue.retry_many({})
    report = await queue.verify()
    assert (report.clean, report.difference) == (True, 0)
    place.client.hincrby(shard.key("meta"), "captured", 1)
    report = await queue.verify()
    assert [found.kind for found in report.violations] == ["drift"] and report.difference == 1
    place.client.hincrby(shard.key("meta"), "captured", -1)
