"""Replay: letters run now, in this process; and the operators' verbs around it."""

from collections import Counter
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.waiting import SOON_S, eventually, running
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterQueue,
    DeadLetterReason,
    Letter,
    LetterNotFound,
    LetterState,
    LetterStateConflict,
    ReplayReport,
    StoreUnavailable,
    Where,
)


async def states(queue: DeadLetterQueue) -> Counter[LetterState]:
    return Counter([letter.state async for letter in queue.letters()])


# -- replay -----------------------------------------------------------------------------------------------


async def test_replay_runs_every_waiting_and_scheduled_letter_due_or_not(queues: Queues) -> None:
    """And no parked one; the report unpacks as success and failed."""
    queue = queues(shards=4, max_retries=5, retry_delay=3600)
    ran: Counter[int] = Counter()

    @queue.handler()
    async def handle(event: int) -> None:
        ran[event] += 1
        if event % 10 == 3:
            raise ValueError

    ids = await queue.add_many(list(range(230)), delay=3600)
    await queue.add_many([1003], delay=0)
    await queue.process()  # 1003 has failed once, the others are scheduled now
    ran.clear()
    await queue.park(ids[0], "test")
    report = await queue.replay_events(batch_size=20)
    success, failed = report
    assert (success, failed, report.matched, report.skipped) == (206, 24, 230, 0)
    assert ran == Counter([*range(1, 230), 1003])
    assert await states(queue) == {LetterState.SCHEDULED: 24, LetterState.PARKED: 1}


async def test_replay_runs_every_letter_that_waited_when_it_began(queues: Queues) -> None:
    """Over several pages too, though its own intake makes them scheduled; none that was scheduled before."""
    queue = queues(shards=1, max_retries=5)
    queue.set_retry_policy(3600)
    scheduled = await queue.add_many(list(range(100, 110)), delay=3600)
    for id in scheduled:
        await queue.retry(id, delay=3600)
    await queue.add_many(list(range(30)), delay=3600)
    await queue.add_many(list(range(30, 40)), delay=0)
    assert (await queue.replay_events(where={"state": "waiting"}, batch_size=4, dry_run=True)).matched == 40
    done: list[int] = []
    queue.add_handler(done.append)
    report = await queue.replay_events(where={"state": "waiting"}, batch_size=4)
    assert (report.matched, report.success, report.skipped) == (40, 40, 0)
    assert sorted(done) == list(range(40))
    assert await states(queue) == {LetterState.SCHEDULED: 10}


async def test_replay_of_waiting_and_parked_letters_leaves_scheduled_ones(queues: Queues) -> None:
    """What was scheduled before is told from what its own intake makes so."""
    queue = queues(shards=1)
    ids = await queue.add_many([1, 2, 3], delay=3600)
    await queue.retry(ids[0], delay=3600)
    await queue.park(ids[1], "test")
    await queue.add_many(list(range(10, 30)), delay=3600)
    done: list[int] = []
    queue.add_handler(done.append)
    report = await queue.replay_events(where={"state": ["parked", "waiting"]}, batch_size=3)
    assert (report.matched, report.success) == (21, 21)
    assert sorted(done) == [2, *range(10, 30)]


async def test_a_replay_tells_how_far_it_is(queues: Queues) -> None:
    """While it runs and at its end; what the hearer raises harms nobody."""
    queue = queues(shards=1)
    heard: list[tuple[int, ...]] = []

    @queue.handler()
    async def handle(event: int) -> None:
        if event == 30:
            await eventually(lambda: heard[-1][0] >= 20)

    await queue.add_many(list(range(40)), delay=3600)

    def hear(report: ReplayReport) -> None:
        heard.append((report.success, report.matched))
        raise ValueError

    report = await queue.replay_events(batch_size=10, max_concurrent=1, on_progress=hear)
    assert (report.success, heard[-1]) == (40, (40, 40))
    assert heard == sorted(heard) and len(set(heard)) >= 3


async def test_replay_runs_parked_letters_when_it_is_asked_to(queues: Queues) -> None:
    """By state, and by any other field."""
    queue = queues()
    done: list[int] = []
    queue.add_handler(done.append)
    ids = await queue.add_many([0, 1, 2, 3], type="a", delay=3600)
    ids += await queue.add_many([4, 5], type="b", subscription_id="s", delay=3600)
    for id in ids:
        await queue.park(id, "test")
    assert tuple(await queue.replay_events()) == (0, 0)
    assert tuple(await queue.replay_events(where={"state": "parked", "type": "b"})) == (2, 0)
    assert sorted(done) == [4, 5]
    assert tuple(await queue.replay_events(where=Where(state=["parked", "scheduled"], event_id="none"))) == (0, 0)
    assert tuple(await queue.replay_events(where=Where(state=LetterState.PARKED))) == (4, 0)


async def test_a_dry_run_counts_and_runs_nothing(queues: Queues) -> None:
    """Counters, states and totals stay as they were."""
    queue = queues()
    queue.add_handler(_never)
    await queue.add_many(list(range(30)), delay=3600)
    before = await queue.stats()
    report = await queue.replay_events(dry_run=True, batch_size=7)
    assert (report.matched, report.dry_run, *report) == (30, True, 0, 0)
    after = await queue.stats()
    assert (after.totals, after.open) == (before.totals, before.open)


async def _never(event: Any) -> None:
    raise AssertionError("never called")


async def test_a_replay_runs_at_most_so_many_handlers_at_a_time(queues: Queues) -> None:
    """`max_concurrent`, whatever the worker's own."""
    queue = queues(concurrency=10)
    now, most = 0, 0

    @queue.handler()
    async def handle(event: Any) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.005)
        now -= 1

    await queue.add_many(list(range(40)), delay=3600)
    assert tuple(await queue.replay_events(max_concurrent=3)) == (40, 0)
    assert most == 3


async def test_a_replayed_letter_that_fails_follows_its_policy(queues: Queues) -> None:
    """It is run once by this replay, counted as an attempt, and parked when it was the last."""
    queue = queues(max_retries=2, retry_delay=0)
    attempts: list[int] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        attempts.append(letter.attempt)
        raise ValueError

    id = await queue.add({}, delay=3600)
    assert tuple(await queue.replay_events()) == (0, 1)
    assert tuple(await queue.replay_events()) == (0, 1)
    assert attempts == [1, 2]
    letter = await queue.get(id)
    assert (letter.state, letter.counters.reason) == (LetterState.PARKED, DeadLetterReason.HANDLER_FAILED)


async def test_letters_that_are_captured_during_a_replay_are_left_alone(queues: Queues) -> None:
    """So a handler that captures what it fails does not keep the replay going for ever."""
    queue = queues(shards=1)
    count = 0

    @queue.handler()
    async def handle(event: Any) -> None:
        nonlocal count
        count += 1
        await queue.add({}, delay=0)

    await queue.add_many(list(range(20)), delay=3600)
    with anyio.fail_after(SOON_S):
        success, failed = await queue.replay_events(batch_size=1, max_concurrent=1)
    assert 20 <= success == count <= 22  # those of the same ms as the first look are not told apart
    assert failed == 0
    assert (await queue.stats()).open == 20


async def test_a_queue_that_grows_during_a_replay_keeps_its_letters_for_the_workers(queues: Queues) -> None:
    """Those of the new shards: nobody of this replay renews their leases, or settles for them."""
    queue, operator = queues(shards=1, lease_seconds=6), queues(shards=1)
    ran: list[int] = []
    may_go = anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        ran.append(event)
        await may_go.wait()

    await queue.add_many(list(range(20)), delay=60)
    shards = (await queue._store()).shards
    reports: list[ReplayReport] = []

    async def replay() -> None:
        reports.append(await queue.replay_events(batch_size=4, max_concurrent=1))

    async with anyio.create_task_group() as group:
        group.start_soon(replay)
        await eventually(lambda: ran)
        await operator.reshard(4)
        await operator.add_many(list(range(20, 60)), delay=60)
        await eventually(lambda: len(shards) == 4)  # a heartbeat has told
        may_go.set()
    assert (reports[0].success, reports[0].matched) == (20, 20)
    assert sorted(ran) == list(range(20))
    assert (await operator.stats()).leased == 0


async def test_two_replays_and_a_worker_run_each_letter_once(queues: Queues) -> None:
    """They lease like any worker; what another one has is skipped."""
    queue, other, worker = queues(), queues(), queues()
    ran: Counter[int] = Counter()

    async def handle(event: int) -> None:
        ran[event] += 1
        await anyio.sleep(0.001)

    for each in (queue, other, worker):
        each.add_handler(handle)
    await queue.add_many(list(range(300)), delay=1)
    found: list[tuple[int, ...]] = []
    async with running(worker), anyio.create_task_group() as group:
        for each in (queue, other):

            async def replay(each: DeadLetterQueue = each) -> None:
                found.append(tuple(await each.replay_events(batch_size=10)))

            group.start_soon(replay)
    await worker.process()
    assert ran == Counter(range(300))
    assert sum(success for success, _ in found) <= 300


async def test_a_replay_without_a_handler_skips_the_letter(queues: Queues) -> None:
    """It is neither a success nor a failure."""
    queue = queues()
    await queue.add({}, delay=3600)
    report = await queue.replay_events()
    assert (report.matched, report.skipped, *report) == (1, 1, 0, 0)


async def test_a_cancelled_replay_gives_its_letters_back(queues: Queues) -> None:
    """Nothing stays leased; the rest is as it was."""
    queue = queues(concurrency=3)
    queue.add_handler(lambda event: None, "quick")
    began = anyio.Event()

    @queue.handler("slow")
    async def slow(event: Any) -> None:
        began.set()
        await anyio.sleep(60)

    await queue.add_many(list(range(20)), type="slow", delay=3600)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.replay_events)
        await began.wait()
        group.cancel_scope.cancel()
    stats = await queue.stats()
    assert (stats.leased, stats.open, stats.totals["retried"], stats.totals["crashed"]) == (0, 20, 0, 0)


@pytest.mark.timed(0.1)
async def test_a_replay_goes_on_after_a_short_outage(queues: Queues, place: Place) -> None:
    """Pages and takes that failed are asked for again: every letter runs once."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=2, operation_timeout=0.2, lease_seconds=60)
        onlooker = queues(shards=2, lease_seconds=60)
        ran: Counter[int] = Counter()

        async def outage() -> None:
            proxy.refusing = True
            proxy.reset_all()
            await anyio.sleep(0.8)
            proxy.heal()

        async with anyio.create_task_group() as group:

            @queue.handler()
            async def handle(event: int) -> None:
                ran[event] += 1
                if len(ran) == 15:
                    group.start_soon(outage)
                await anyio.sleep(0.01)

            await onlooker.add_many(list(range(60)), delay=3600)
            report = await queue.replay_events(batch_size=5, max_concurrent=5)
        assert ran == Counter(range(60))
        assert (await onlooker.stats()).open == 0
        # What was settled by a call whose reply was lost is found gone: nobody can tell by whom.
        assert report.matched == 60
        assert report.failed == 0
        assert report.success >= 50


@pytest.mark.parametrize("state", [LetterState.PARKED, LetterState.SCHEDULED, LetterState.WAITING])
async def test_a_replay_runs_letters_that_were_taken_by_a_call_whose_reply_was_lost(
    queues: Queues, place: Place, state: LetterState
) -> None:
    """They are leased, and nobody knows: the replay finds them, and takes them again."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1, lease_seconds=60)
        done: list[int] = []
        queue.add_handler(done.append)
        await _letters_in(queue, state, 12)
        proxy.lose_replies("take", 2)
        with anyio.fail_after(SOON_S):
            report = await queue.replay_events(batch_size=5, where={"state": state})
        assert proxy.replies_to_lose == 0
        assert (report.success, report.failed, report.skipped) == (12, 0, 0)
        assert sorted(done) == list(range(12))


@pytest.mark.timed(0.1)
@pytest.mark.parametrize("verb", ["scan", "take"])
async def test_a_replay_that_gives_up_settles_what_is_done_and_gives_back_the_rest(
    queues: Queues, place: Place, verb: str
) -> None:
    """The error is `StoreUnavailable` itself, and no letter is left to its lease."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1, operation_timeout=0.2, lease_seconds=3)
        onlooker = queues(shards=1, lease_seconds=3)

        @queue.handler()
        async def handle(event: int) -> None:
            if event == 3:
                proxy.silence(verb)
                await anyio.sleep(60)

        await onlooker.add_many(list(range(30)), delay=3600)
        with anyio.fail_after(SOON_S), pytest.raises(StoreUnavailable):
            await queue.replay_events(batch_size=4, max_concurrent=4)
        proxy.heal()
        stats = await onlooker.stats()
        assert (stats.leased, stats.suspects) == (0, 0)
        assert stats.totals["resolved"] >= 3
        assert stats.totals["resolved"] + stats.open == 30
        assert stats.next_due_ms is not None and stats.next_due_ms - stats.now_ms > 3_500_000


async def test_a_replay_runs_letters_beyond_the_byte_budget_of_a_call(queues: Queues) -> None:
    """A `take` stops at 4 MiB of bodies: the rest is taken by the next ones."""
    queue = queues(shards=1, concurrency=30)
    sizes: list[int] = []

    @queue.handler()
    async def handle(event: bytes) -> None:
        sizes.append(len(event))

    await queue.add_many([bytes(900_000)] * 14, delay=3600)
    report = await queue.replay_events()
    assert (report.matched, report.success, report.skipped) == (14, 14, 0)
    assert sizes == [900_000] * 14


async def test_a_replay_runs_letters_far_behind_the_intake(queues: Queues) -> None:
    """A `take` runs the intake past 500 letters only: those that it did not reach are named again."""
    queue = queues(shards=1)
    await queue.add_many(list(range(3000)), type="early", delay=0)
    await queue.add_many([1, 2, 3], type="late", delay=0)
    done: list[int] = []
    queue.add_handler(done.append)
    report = await queue.replay_events(where={"type": "late"})
    assert (report.matched, report.success, report.skipped) == (3, 3, 0)
    assert sorted(done) == [1, 2, 3]


async def test_a_replay_names_no_letter_for_ever(queues: Queues) -> None:
    """What others hold does not come, however often it is named: it is skipped."""
    queue, other = queues(shards=1, concurrency=30), queues(shards=1)
    queue.add_handler(lambda event: None)
    ids = await queue.add_many([bytes(900_000)] * 12, delay=3600)
    shard = (await other._store()).shards[0]
    taken = await shard.take("other", 6, ids=ids[::4])
    report = await queue.replay_events(where={"state": ["leased", "waiting", "scheduled"]})
    assert (report.matched, report.success, report.skipped) == (12, 9, len(taken.letters))
    await shard.reclaim(lease_ms=0, max_crashes=3)


@pytest.mark.parametrize("state", [LetterState.PARKED, LetterState.SCHEDULED, LetterState.WAITING])
async def test_a_replay_leaves_a_letter_that_nobody_here_handles_as_it_is(queues: Queues, state: LetterState) -> None:
    """Parked, or due when it was due; and no counter moves."""
    queue = queues()
    queue.add_handler(_never, "other")
    [id] = await _letters_in(queue, state, 1)
    before = await queue.get(id)
    report = await queue.replay_events(where={"state": state})
    assert (report.matched, report.skipped, *report) == (1, 1, 0, 0)
    after = await queue.get(id)
    assert (after.state, after.since_ms, after.counters) == (state, before.since_ms, before.counters)


async def _letters_in(queue: DeadLetterQueue, state: LetterState, count: int) -> list[str]:
    """Capture letters that are due in an hour, and bring them into this state."""
    ids = await queue.add_many(list(range(count)), delay=3600)
    if state is LetterState.PARKED:
        for id in ids:
            await queue.park(id, "why it is parked")
    elif state is LetterState.SCHEDULED:
        await queue.process()
    assert await states(queue) == {state: count}
    return ids


@pytest.mark.parametrize("state", [LetterState.PARKED, LetterState.SCHEDULED, LetterState.WAITING])
async def test_a_cancelled_replay_leaves_letters_as_they_were(queues: Queues, state: LetterState) -> None:
    """Started or not: parked for the old reason, or due when they were due."""
    queue = queues(concurrency=3)
    ids = await _letters_in(queue, state, 12)
    before = [await queue.get(id) for id in ids]
    began = anyio.Event()

    @queue.handler()
    async def handle(event: int) -> None:
        began.set()
        await anyio.sleep(60)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: queue.replay_events(where={"state": state}))
        await began.wait()
        group.cancel_scope.cancel()
    for id, then in zip(ids, before, strict=True):
        now = await queue.get(id)
        assert (now.counters.failures, now.counters.crashes) == (0, 0)
        assert now.counters.reason == then.counters.reason
        if state is LetterState.PARKED:
            assert now.state is LetterState.PARKED
        else:
            assert now.state in (LetterState.WAITING, LetterState.SCHEDULED)
            assert abs((now.since_ms or now.not_before_ms) - (then.since_ms or then.not_before_ms)) < 10_000


@pytest.mark.parametrize("state", [LetterState.PARKED, LetterState.SCHEDULED])
async def test_a_letter_whose_handler_goes_during_a_replay_is_skipped(queues: Queues, state: LetterState) -> None:
    """It was leased already: it goes back as it was, and is no failure."""
    queue = queues(shards=1)
    await _letters_in(queue, state, 5)

    async def handle(event: int) -> None:
        queue.remove_handler(handler)
        await anyio.sleep(0.01)

    handler = queue.add_handler(handle)
    report = await queue.replay_events(where={"state": state}, max_concurrent=1)
    assert (report.matched, report.skipped, *report) == (5, 4, 1, 0)
    assert await states(queue) == {state: 4}


async def test_suspects_and_held_letters_are_left_alone_by_a_replay(queues: Queues) -> None:
    """A suspect must run alone, and a hold is an operator's will."""
    queue = queues(shards=1)
    queue.add_handler(_never)
    await queue.add({}, delay=0)
    shard = (await queue._store()).shards[0]
    await shard.take("dead", 1)
    await shard.reclaim(lease_ms=0, max_crashes=3)
    assert tuple(await queue.replay_events(where={"state": ["suspect", "scheduled", "waiting"]})) == (0, 0)


@pytest.mark.parametrize("where", [{"typ": "a"}, {"state": "gone"}, {"state": ["parked", "x"]}])
async def test_a_filter_that_cannot_be_meant_is_refused(queues: Queues, where: dict[str, Any]) -> None:
    """Rather than replaying everything."""
    with pytest.raises(ConfigError, match="where"):
        await queues().replay_events(where=where)


# -- operators --------------------------------------------------------------------------------------------


async def test_retry_sends_a_letter_of_any_idle_state_to_the_workers(queues: Queues) -> None:
    """A parked one gets a new budget of retries."""
    queue = queues(max_retries=1)
    attempts: list[int] = []

    @queue.handler()
    async def handle(event: Any, letter: Letter) -> None:
        attempts.append(letter.attempt)
        raise ValueError

    id = await queue.add({}, delay=3600)  # waiting
    await queue.retry(id)
    await queue.process()
    assert (await queue.get(id)).state is LetterState.PARKED
    await queue.retry(id)
    letter = await queue.get(id)
    assert (letter.state, letter.counters.redrives, letter.counters.failures) == (LetterState.SCHEDULED, 1, 1)
    await queue.process()
    assert attempts == [1, 2]
    assert (await queue.get(id)).state is LetterState.PARKED


async def test_verbs_on_letters_that_do_not_fit_say_so(queues: Queues) -> None:
    """Leased, parked, gone, and ids that are none."""
    queue = queues(shards=1)
    id = await queue.add({}, delay=0)
    shard = (await queue._store()).shards[0]
    [leased] = (await shard.take("somebody", 1)).letters
    assert leased.lease is not None
    with pytest.raises(LetterStateConflict) as conflict:
        await queue.retry(id)
    assert (conflict.value.state, conflict.value.verb) == ("leased", "retry")
    with pytest.raises(LetterStateConflict):
        await queue.park(id, "why")
    await queue.discard(id, "why")
    for gone in (id, "0-1-1", "7-1-1", "nonsense", "", "0--", "0-99999999999999999999999-0"):
        with pytest.raises(LetterNotFound):
            await queue.get(gone)
        with pytest.raises(LetterNotFound):
            await queue.retry(gone)
        with pytest.raises(LetterNotFound):
            await queue.discard(gone, "why")
    await shard.reclaim(lease_ms=0, max_crashes=3)


async def test_a_verb_reaches_a_letter_far_behind_the_intake(queues: Queues) -> None:
    """The last of 3,000 waiting letters can be retried, parked and discarded at once."""
    queue = queues(shards=1)
    ids = await queue.add_many(list(range(3000)), delay=0)
    await queue.discard(ids[-1], "test")
    await queue.park(ids[-2], "test")
    await queue.retry(ids[-3], delay=60)
    stats = await queue.stats()
    assert (stats.open, stats.parked) == (2999, 1)
    done: list[int] = []
    queue.add_handler(done.append)
    await queue.process()
    assert len(done) == 2997


async def test_letters_can_be_filtered_and_shown_without_bodies(queues: Queues) -> None:
    """Different fields must all match, values of one are alternatives."""
    queue = queues()
    await queue.add_many([1, 2], type="a", error=ValueError("x"), delay=3600)
    await queue.add_many([3], type="b", subscription_id="s", delay=3600)

    async def found(**where: Any) -> int:
        return len([letter async for letter in queue.letters(where)])

    assert await found() == 3
    assert await found(type=["a", "b"]) == 3
    assert await found(type="a", error_type="ValueError") == 2
    assert await found(type="a", subscription="s") == 0
    assert await found(state="waiting") == 3
    assert await found(state=[LetterState.PARKED]) == 0
    assert {letter.payload async for letter in queue.letters(whole=False)} == {b""}


async def test_stats_count_each_state_and_the_totals(queues: Queues) -> None:
    """And tell the time, the oldest letter and the next due one."""
    queue = queues()
    queue.set_retry_policy(30)
    queue.add_handler(_fail)
    ids = await queue.add_many([1, 2, 3], delay=0)
    await queue.process()
    await queue.park(ids[0], "test")
    await queue.add_many([4, 5], delay=60)
    stats = await queue.stats()
    assert (stats.open, stats.waiting, stats.scheduled, stats.parked, stats.leased) == (5, 2, 2, 1, 0)
    assert stats.totals["captured"] == 5
    assert stats.totals["retried"] == 3
    assert stats.oldest_ms == min(int(id.split("-")[1]) for id in ids)
    assert stats.next_due_ms is not None
    assert 20_000 < stats.next_due_ms - stats.now_ms <= 30_000


async def _fail(event: Any) -> None:
    raise ValueError


async def test_operators_and_workers_at_once_leave_a_clean_queue(queues: Queues) -> None:
    """Retry, park and discard letters at random while two workers run them."""
    queue, worker = queues(shards=1), queues(shards=1, max_retries=3, retry_delay=0.01)

    @worker.handler()
    async def handle(event: int, letter: Letter) -> None:
        await anyio.sleep(0.001)
        if letter.attempt <= event % 3:
            raise ValueError

    ids = await queue.add_many(list(range(150)), delay=0)
    ended = Counter[str]()
    async with running(worker), anyio.create_task_group() as group:
        for n, id in enumerate(ids):

            async def act(n: int = n, id: str = id) -> None:
                try:
                    match n % 3:
                        case 0:
                            await queue.retry(id)
                        case 1:
                            await queue.park(id, "test")
                            await queue.retry(id)
                        case _:
                            await queue.discard(id, "test")
                            ended["discarded"] += 1
                except (LetterNotFound, LetterStateConflict) as error:
                    ended[error.code] += 1

            group.start_soon(act)
        await eventually(lambda: _is_empty(queue))
    totals = (await queue.stats()).totals
    assert totals["discarded"] == ended["discarded"]
    assert totals["resolved"] + totals["discarded"] == totals["captured"] == 150


async def _is_empty(queue: DeadLetterQueue) -> bool:
    return (await queue.stats()).open == 0
