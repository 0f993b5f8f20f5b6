"""The audit stream: every verb of an operator is in it before anything is changed, and with what became of it after."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import patiently
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterConfig,
    DeadLetterQueue,
    LetterNotFound,
    LetterState,
    LetterStateConflict,
    StoreError,
    StoreUnavailable,
    acting_as,
    auditor,
    blocking,
)
from uno.event_bus.dead_letter.actor import process_user
from uno.event_bus.dead_letter.bulk import Answered
from uno.event_bus.dead_letter.store.audit import AuditEntry
from uno.event_bus.dead_letter.store.layout import queue_key
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import Answer, Seen

KEY = queue_key("default", "audit")


async def told(queue: DeadLetterQueue) -> list[AuditEntry]:
    """The entries, the oldest first."""
    return [entry async for entry in queue.audited()][::-1]


def counts(entry: AuditEntry) -> tuple[int, int, int, int]:
    return entry.done, entry.changed, entry.leased, entry.not_found


def at_the_first_call(monkeypatch: pytest.MonkeyPatch, verb: str, stroke: Callable[[], Any]) -> None:
    """Have something happen when a verb is about to change letters for the first time."""
    act = getattr(Shard, verb)
    strokes = [stroke]

    async def disturbed(shard: Shard, letters: Sequence[Seen], **how: Any) -> list[Answer]:
        while strokes:
            await strokes.pop()()
        return await act(shard, letters, **how)

    monkeypatch.setattr(Shard, verb, disturbed)


# -- what is recorded -------------------------------------------------------------------------------------


async def test_a_verb_is_one_intent_and_one_outcome_with_the_same_names(queues: Queues) -> None:
    """Who, in which request, what, to which letter, why, and what became of it."""
    queue = queues()
    ids = await queue.add_many([1, 2, 3], delay=3600)
    with acting_as("token:ops", "r1"):
        await queue.park(ids[0], "look at it")
        await queue.retry(ids[0], delay=60)
    await queue.discard(ids[1], "test data")
    entries = await told(queue)
    assert [(entry.verb, entry.phase) for entry in entries] == [
        (verb, phase) for verb in ("park", "retry", "discard") for phase in ("intent", "outcome")
    ]
    assert [entry.who for entry in entries] == ["token:ops"] * 4 + [process_user()] * 2
    assert [entry.request_id for entry in entries[:4]] == ["r1"] * 4
    for intent, outcome in zip(entries[::2], entries[1::2], strict=True):
        assert (intent.call, intent.request_id) == (outcome.call, outcome.request_id)
        assert (intent.outcome, outcome.outcome) == ("", "done")
        assert counts(intent) == (0, 0, 0, 0) and counts(outcome) == (1, 0, 0, 0)
        assert (intent.which, intent.count, intent.why) == (outcome.which, outcome.count, outcome.why)
    assert len({entry.call for entry in entries}) == 3 and len({entry.request_id for entry in entries}) == 2
    assert [json.loads(entry.which) for entry in entries[1::2]] == [{"ids": [id]} for id in (ids[0], ids[0], ids[1])]
    assert [entry.why for entry in entries[1::2]] == ["look at it", "", "test data"]
    assert [entry.delay_ms for entry in entries] == [0, 0, 60_000, 60_000, 0, 0]


async def test_a_bulk_verb_is_two_entries_whatever_the_number_of_letters(queues: Queues) -> None:
    """By ids and by filter; the outcome counts what became of them."""
    queue = queues()
    ids = await queue.add_many(list(range(1200)), type="a", delay=3600)
    await queue.retry_many([*ids, "0-1-1", "nonsense"], delay=60)
    await queue.discard_many({"type": "a", "state": ["waiting", "scheduled"]}, "cleared")
    _, retried, intent, discarded = await told(queue)
    which = json.loads(retried.which)
    assert (len(which["ids"]) + which["left_out"], retried.count) == (1202, 1202)
    assert len(retried.which) <= 4096 and counts(retried) == (1200, 0, 0, 2)
    assert json.loads(intent.which) == {"where": {"state": ["waiting", "scheduled"], "type": ["a"]}}
    assert (discarded.count, discarded.why, counts(discarded)) == (None, "cleared", (1200, 0, 0, 0))


async def test_the_intent_is_there_before_anything_is_changed(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the outcome is not."""
    queue = queues()
    id = await queue.add(1, delay=3600)
    seen: list[AuditEntry] = []

    async def look() -> None:
        assert (await queue.get(id)).state is LetterState.WAITING
        seen.extend(await told(queue))

    at_the_first_call(monkeypatch, "discard", look)
    await queue.discard(id, "test")
    assert [entry.phase for entry in seen] == ["intent"]


async def test_a_verb_that_fails_has_its_error_as_outcome(queues: Queues) -> None:
    """A letter that is not there, one that a worker has, and an error of the caller's own."""
    queue = queues(shards=1)
    id, other = await queue.add_many([1, 2], delay=3600)
    with pytest.raises(LetterNotFound):
        await queue.retry("0-1-1")
    [shard] = (await queue._store()).shards
    await shard.take("somebody", 1, ids=[id])
    with pytest.raises(LetterStateConflict):
        await queue.park(id, "test")

    def refuse(answered: Sequence[Answered]) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await queue.discard_many([other], "test", on_answers=refuse)
    outcomes = (await told(queue))[1::2]
    assert [entry.outcome for entry in outcomes] == ["letter_not_found", "letter_state_conflict", "BrokenPipeError"]
    assert [counts(entry) for entry in outcomes] == [(0, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 0)]
    await shard.reclaim(lease_ms=0, max_crashes=3)


async def test_a_growth_is_recorded(queues: Queues) -> None:
    """With the count that was asked for; also one that cannot be."""
    queue = queues(shards=None)
    await queue.reshard(8)
    with pytest.raises(ConfigError):
        await queue.reshard(12)
    entries = await told(queue)
    assert [(entry.verb, entry.phase, entry.outcome, entry.which) for entry in entries] == [
        ("reshard", "intent", "", '{"shards": 8}'),
        ("reshard", "outcome", "done", '{"shards": 8}'),
        ("reshard", "intent", "", '{"shards": 12}'),
        ("reshard", "outcome", "config_invalid", '{"shards": 12}'),
    ]


async def test_what_changes_nothing_and_what_workers_do_is_not_recorded(queues: Queues, place: Place) -> None:
    """Captures, looks, dry runs, verbs with arguments that cannot be, work."""
    queue = queues()
    queue.add_handler(_nothing)
    ids = await queue.add_many([1, 2, 3], delay=0)
    await queue.discard_many({}, "test", dry_run=True)
    await queue.retry_many(ids, dry_run=True)
    await queue.stats()
    await queue.verify()
    with pytest.raises(ConfigError):
        await queue.retry(ids[0], delay=-1)
    with pytest.raises(ConfigError):
        await queue.discard_many({"typ": "a"}, "test")
    await queue.process()
    await queue.replay_events()
    assert await told(queue) == []
    assert place.client.exists(KEY) == 0


async def _nothing(event: Any) -> None:
    pass


async def test_no_payload_is_recorded(queues: Queues, place: Place) -> None:
    """Nor the error that the event failed with."""
    queue = queues()
    ids = await queue.add_many([{"card": "4111-1111"}] * 3, error="secret 4111-1111", delay=3600)
    await queue.retry(ids[0])
    await queue.park(ids[1], "test")
    await queue.discard_many({}, "test")
    assert len(entries := place.client.xrange(KEY)) == 6
    assert b"4111-1111" not in repr(entries).encode()


async def test_a_lost_reply_leaves_one_intent(queues: Queues, server: Server) -> None:
    """The call is repeated, and finds what it has written."""
    with Proxy(server.url) as proxy:
        queue = queues(proxy.redis, shards=1)
        id = await queue.add(1, delay=3600)
        proxy.lose_replies("audit", 1)
        await queue.discard(id, "test")
        assert proxy.replies_to_lose == 0
        assert [entry.phase for entry in await told(queue)] == ["intent", "outcome"]


async def test_pages_are_bounded_and_follow_one_another(queues: Queues) -> None:
    """As a service reads them."""
    queue = queues()
    for _ in range(3):
        await queue.retry_many({})
    first = await queue.audit_page(limit=4)
    last = await queue.audit_page(first.cursor, limit=4)
    assert [entry.phase for entry in first.entries + last.entries] == ["outcome", "intent"] * 3
    assert last.cursor == ""
    for limit in (0, 1001):
        with pytest.raises(ConfigError, match="limit"):
            await queue.audit_page(limit=limit)


# -- when it cannot be recorded ---------------------------------------------------------------------------


async def test_what_cannot_be_recorded_is_not_done(queues: Queues, place: Place) -> None:
    """A stranger's key in its place: each verb fails with that error, and every letter is as it was."""
    queue = queues()
    ids = await queue.add_many([1, 2], delay=3600)
    place.client.set(KEY, "x")
    before = await queue.stats()
    for verb in (
        partial(queue.retry, ids[0]),
        partial(queue.park, ids[0], "test"),
        partial(queue.discard, ids[0], "test"),
        partial(queue.retry_many, ids),
        partial(queue.discard_many, {}, "test"),
        partial(queue.reshard, 4),
    ):
        with pytest.raises(StoreError, match="wrong kind of value"):
            await verb()
    after = await queue.stats()
    assert (after.shards, after.open, after.waiting, after.totals) == (2, 2, 2, before.totals)
    place.client.delete(KEY)


async def test_while_the_stream_is_away_a_verb_certainly_does_nothing(queues: Queues, place: Place) -> None:
    """Also where it is not known whether the intent was written: to repeat the verb is safe."""
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1, operation_timeout=0.3)
        id = await queues(shards=1).add(1, delay=3600)
        await patiently(queue.open)
        proxy.silence("audit")
        with pytest.raises(StoreUnavailable, match="the audit stream did not take the intent") as caught:
            await queue.discard(id, "test")
        assert caught.value.certain
        proxy.heal()
        assert (await patiently(partial(queue.get, id))).state is LetterState.WAITING
        await queues(shards=1).discard(id, "test")


async def test_a_verb_that_is_done_stands_where_its_outcome_cannot_be_written(
    queues: Queues, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning says what it was, within the bound."""
    monkeypatch.setattr(auditor, "OUTCOME_SECONDS", 0.1)
    with Proxy(place.url) as proxy:
        queue = queues(proxy.redis, shards=1)
        id = await queue.add(1, delay=3600)

        async def silence() -> None:
            proxy.silence("audit")

        at_the_first_call(monkeypatch, "discard", silence)
        with acting_as("token:ops", "r1"):
            await queue.discard(id, "test")
        proxy.heal()
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warning.startswith(
            "the audit stream has no outcome of discard by 'token:ops', request r1: it is done, 1 d"
        )
        assert warning.endswith("not within 0.1 s")
        assert (await queue.stats()).open == 0


async def test_a_full_server_is_cleared_and_that_is_recorded(
    queues: Queues, limit_memory: Callable[[str], None]
) -> None:
    """It is then that operators discard."""
    queue = queues()
    ids = await queue.add_many(list(range(10)), delay=3600)
    limit_memory("100kb")
    await queue.discard(ids[0], "full")
    assert (await queue.discard_many({}, "full")).done == 9
    assert [(entry.phase, entry.done) for entry in await told(queue)] == [
        ("intent", 0),
        ("outcome", 1),
        ("intent", 0),
        ("outcome", 9),
    ]


# -- ended in the middle ----------------------------------------------------------------------------------


async def test_a_verb_that_is_cancelled_has_an_outcome_that_says_so(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what was done until then."""
    queue = queues(shards=1)
    await queue.add_many(list(range(1200)), delay=3600)
    scope = anyio.CancelScope()

    def cancel(answered: Sequence[Answered]) -> None:
        scope.cancel()

    with scope:
        await queue.discard_many({}, "test", on_answers=cancel)
    assert scope.cancelled_caught
    intent, outcome = await told(queue)
    assert (intent.call, outcome.outcome, counts(outcome)) == (outcome.call, "cancelled", (500, 0, 0, 0))
    assert (await queue.stats()).open == 700


KILLED = """
import anyio, os, signal, sys
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, acting_as

def kill(answered):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with DeadLetterQueue(sys.argv[1], DeadLetterConfig(shards=2)) as queue:
        with acting_as("killed", "r1"):
            await queue.discard_many({}, "test", on_answers=kill)

anyio.run(main)
"""


async def test_a_process_that_is_killed_leaves_an_intent_without_an_outcome(queues: Queues, server: Server) -> None:
    """Which tells that the outcome is not known, and whose it is."""
    queue = queues()
    await queue.add_many([1, 2], delay=3600)
    run = await anyio.run_process([sys.executable, "-c", KILLED, server.url], check=False, stderr=subprocess.PIPE)
    assert run.returncode == -9, run.stderr
    [intent] = await told(queue)
    assert (intent.phase, intent.who, intent.request_id, intent.verb) == ("intent", "killed", "r1", "discard")


# -- who --------------------------------------------------------------------------------------------------


async def test_requests_at_once_are_told_apart(queues: Queues) -> None:
    """As those of a service are."""
    queue = queues()
    ids = await queue.add_many(list(range(8)), delay=3600)

    async def act(number: int) -> None:
        with acting_as(f"token:{number}", f"r{number}"):
            await queue.retry(ids[number])

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(act, number)
    entries = await told(queue)
    assert len(entries) == 16
    for entry in entries:
        number = ids.index(json.loads(entry.which)["ids"][0])
        assert (entry.who, entry.request_id) == (f"token:{number}", f"r{number}")


def test_the_blocking_twin_acts_as_its_caller(server: Server) -> None:
    """Its verbs run on a thread of their own."""
    with blocking.DeadLetterQueue(server.url, DeadLetterConfig(shards=1)) as queue:
        id = queue.add(1, delay=3600)
        with acting_as("web:anna", "r1"):
            queue.retry(id)
        queue.discard(id, "test")
    whos = [fields[b"who"].decode() for _, fields in server.client.xrange(KEY)]
    assert whos == ["web:anna"] * 2 + [process_user()] * 2
