"""What a queue promises its callers, whether they reach Redis itself or a service in front of it."""

import logging
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.contract.conftest import MakeSides
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import (
    ConfigError,
    DeadLetterQueue,
    Disabled,
    InvalidEvent,
    Letter,
    LetterNotFound,
    LetterState,
    LetterStateConflict,
    PartialCapture,
    PayloadTooLarge,
    QueueFull,
)
from uno.event_bus.dead_letter.bulk import Answered
from uno.event_bus.dead_letter.codec import Encoded
from uno.event_bus.dead_letter.store.registry import WorkerInfo
from uno.event_bus.dead_letter.store.values import Answer

NEVER: Any = {"delay": 3600}


class Broken(Exception):
    pass


async def listed(queue: DeadLetterQueue, **where: Any) -> list[str]:
    return [letter.id async for letter in queue.letters(where, whole=False)]


def facts(letter: Letter) -> dict[str, Any]:
    names = ("id", "state", "counters", "since_ms", "due_ms", "payload", "headers", "version", "fields")
    return {name: getattr(letter, name) for name in names} | {"history": letter.history.attempts}


# -- capture ----------------------------------------------------------------------------------------------


async def test_a_captured_letter_is_kept_whole(sides: MakeSides) -> None:
    """Event, failure, origin, headers: what one side has captured, the other shows, and both show the same."""
    both = await sides()
    try:
        raise Broken("the warehouse hung up")
    except Broken as error:
        letter_id = await both.queue.add(
            {"order": 7, "city": "Zürich"},
            type="OrderPlaced",
            error=error,
            subscription_id="reserve-stock",
            attempt_count=3,
            event_id="e-7",
            ordering_key="order-7",
            headers={"correlation": "c-1"},
            failed_at=1_718_000_000.5,
            tenant="acme",
            **NEVER,
        )
    letter = await both.truth.get(letter_id)
    assert msgspec.json.decode(letter.payload) == {"order": 7, "city": "Zürich"}
    assert (letter.type, letter.subscription, letter.event_id) == ("OrderPlaced", "reserve-stock", "e-7")
    assert (letter.reason, letter.error) == ("handler_failed", "the warehouse hung up")
    assert letter.error_type.endswith("Broken") and "raise Broken" in letter.traceback
    assert (letter.caller_attempts, letter.ordering_key) == (3, "order-7")
    assert letter.failed_at_ms == 1_718_000_000_500
    assert (letter.headers["correlation"], letter.headers["tenant"]) == ("c-1", "acme")
    assert facts(await both.queue.get(letter_id)) == facts(letter)


async def test_an_error_has_one_fingerprint_on_both_ways(sides: MakeSides) -> None:
    """Error groups do not depend on who captured a letter."""
    both = await sides()
    ids = [await queue.add({}, error="disk 7 is full", **NEVER) for queue in (both.queue, both.truth)]
    one, other = [await both.truth.get(letter_id) for letter_id in ids]
    assert one.fingerprint == other.fingerprint != ""


@pytest.mark.parametrize("payload", [b"", b"\x00\xff\n\r", b' {"n": 1}\n', b'{"n":1}'])
@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
async def test_the_bytes_of_an_event_stay_as_they_are(sides: MakeSides, payload: bytes, content_type: str) -> None:
    """Also where they are no JSON, whatever they are said to be."""
    both = await sides(shards=1)
    letter_id = await both.queue.add(Encoded("Blob", content_type, payload), **NEVER)
    for queue in (both.queue, both.truth):
        letter = await queue.get(letter_id)
        assert (letter.payload, letter.content_type) == (payload, content_type)


async def test_a_repeated_capture_answers_the_first_id(sides: MakeSides) -> None:
    """By event id and subscription, or by the caller's own key."""
    both = await sides()
    first = await both.queue.add({"n": 1}, event_id="e", **NEVER)
    assert await both.queue.add({"n": 2}, event_id="e", **NEVER) == first
    assert await both.queue.add({"n": 3}, event_id="e", subscription_id="s", **NEVER) != first
    keyed = await both.queue.add({"n": 4}, dedupe_key="k", **NEVER)
    assert await both.queue.add({"n": 5}, dedupe_key="k", event_id="other", **NEVER) == keyed
    assert len(await listed(both.truth)) == 3


async def test_many_are_captured_in_order(sides: MakeSides) -> None:
    """More than one request's, and by their positions."""
    both = await sides()
    ids = await both.queue.add_many([{"n": n} for n in range(620)], event_ids=[f"e{n}" for n in range(620)], **NEVER)
    assert len(set(ids)) == 620
    for n in (0, 299, 619):
        assert (await both.truth.get(ids[n])).event_id == f"e{n}"
    assert await both.queue.add_many([{}, {}], event_ids=["e5", "e600"], **NEVER) == [ids[5], ids[600]]
    assert await both.queue.add_many([]) == []


async def test_what_cannot_be_captured_is_named_by_its_position(sides: MakeSides) -> None:
    """And the others are captured."""
    both = await sides(max_payload_bytes=100)
    with pytest.raises(PartialCapture) as partial:
        await both.queue.add_many([{"n": 1}, {"n": float("nan")}, {"n": "x" * 200}, {"n": 2}], **NEVER)
    assert sorted(partial.value.ids) == [0, 3]
    assert isinstance(partial.value.errors[1], InvalidEvent)
    assert isinstance(partial.value.errors[2], PayloadTooLarge)
    assert sorted(await listed(both.truth)) == sorted(partial.value.ids.values())


async def test_a_full_queue_refuses(sides: MakeSides) -> None:
    """Nothing is trimmed, and the error has its facts."""
    both = await sides(shards=1, max_queue_size=3)
    await both.queue.add_many([{}, {}, {}, {}], **NEVER)  # its share and a tenth
    with pytest.raises(QueueFull) as full:
        await both.queue.add({}, **NEVER)
    assert (full.value.queue, full.value.limit, full.value.shards) == ("default", 3, 1)
    with pytest.raises(PartialCapture) as partial:
        await both.queue.add_many([{}, {}], **NEVER)
    assert not partial.value.ids and isinstance(partial.value.errors[0], QueueFull)
    assert len(await listed(both.truth)) == 4


async def test_a_queue_that_is_switched_off_takes_nothing(sides: MakeSides) -> None:
    """`Disabled`, before anything is sent."""
    both = await sides(enabled=False)
    with pytest.raises(Disabled):
        await both.queue.add({})
    with pytest.raises(Disabled):
        await both.queue.add_many([{}, {}])


async def test_a_block_that_fails_is_captured(sides: MakeSides) -> None:
    """And its error goes no further."""
    both = await sides()
    async with both.queue.capture({"n": 1}, event_id="e", **NEVER):
        raise Broken("no")
    [letter_id] = await listed(both.truth)
    assert (await both.truth.get(letter_id)).error == "no"


async def test_the_creation_context_goes_along(sides: MakeSides) -> None:
    """A letter's headers say which span captured it, so that its attempts belong to the same trace."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    both = await sides(tracer_provider=provider)
    letter_id = await both.queue.add({}, **NEVER)
    [span] = [span for span in exporter.get_finished_spans() if span.name == "send default"]
    context = span.get_span_context()
    assert context is not None
    carried = (await both.truth.get(letter_id)).headers["traceparent"].split("-")
    assert carried[1:3] == [f"{context.trace_id:032x}", f"{context.span_id:016x}"]


async def test_a_delay_counts_from_the_capture(sides: MakeSides) -> None:
    """0: due now; None: the policy's first delay."""
    both = await sides(retry_delay=60)
    now, later, policy = [await both.truth.get(await both.queue.add({}, delay=delay)) for delay in (0, 3600, None)]
    assert -1000 < now.not_before_ms - now.captured_at_ms <= 0  # Redis 6.2 reads the clock again for an id
    assert 3_580_000 <= later.not_before_ms - later.captured_at_ms <= 3_600_000
    assert 0 < policy.not_before_ms - policy.captured_at_ms <= 75_000


# -- looking ----------------------------------------------------------------------------------------------


async def test_letters_are_found_by_their_fields(sides: MakeSides) -> None:
    """Different fields must all match, several values of one are alternatives; over all pages."""
    both = await sides()
    of_a = await both.truth.add_many([{"n": n} for n in range(700)], type="A", **NEVER)
    of_b = await both.truth.add_many([{"n": n} for n in range(5)], type="B", subscription_id="s", **NEVER)
    await both.truth.park(of_b[0], "test")
    assert sorted(await listed(both.queue)) == sorted([*of_a, *of_b])
    assert sorted(await listed(both.queue, type="A")) == sorted(of_a)
    assert sorted(await listed(both.queue, type=["B", "C"])) == sorted(of_b)
    assert await listed(both.queue, subscription="s", state="parked") == [of_b[0]]
    assert await listed(both.queue, type="C") == []


async def test_letters_are_whole_if_they_are_asked_for_whole(sides: MakeSides) -> None:
    """Else payload and traceback are left out."""
    both = await sides()
    await both.queue.add({"n": 1}, error="no", **NEVER)
    [whole] = [letter async for letter in both.queue.letters()]
    [head] = [letter async for letter in both.queue.letters(whole=False)]
    assert whole.payload == b'{"n":1}' and head.payload == b""
    assert (head.id, head.error, head.state) == (whole.id, "no", whole.state)


async def test_a_wrong_filter_is_refused(sides: MakeSides) -> None:
    """With the field that was meant."""
    both = await sides()
    wrong: list[dict[str, Any]] = [{"typ": "A"}, {"state": "dead"}, {"type": []}]
    for where in wrong:
        with pytest.raises(ConfigError, match="where"):
            await listed(both.queue, **where)


@pytest.mark.parametrize("letter_id", ["0-1-1", "99-1718000000000-0", "nonsense", "a/b?c#d", "..", "", "9" * 100])
async def test_what_is_not_there_is_not_found(sides: MakeSides, letter_id: str) -> None:
    """By any verb on a letter."""
    both = await sides()
    for verb in (
        both.queue.get(letter_id),
        both.queue.retry(letter_id),
        both.queue.park(letter_id, "why"),
        both.queue.discard(letter_id, "why"),
    ):
        with pytest.raises(LetterNotFound) as refused:
            await verb
        assert refused.value.letter_id == letter_id


async def test_stats_are_the_same(sides: MakeSides) -> None:
    """Counts, totals and shards."""
    both = await sides()
    ids = await both.queue.add_many([{}, {}, {}], **NEVER)
    await both.queue.park(ids[0], "test")
    seen, truth = await both.queue.stats(), await both.truth.stats()
    assert (seen.open, seen.parked, seen.shards) == (3, 1, 2)
    assert seen.totals == truth.totals and seen.queue == "default"
    assert [row["open"] for row in seen.by_shard] == [row["open"] for row in truth.by_shard]


async def test_verify_says_whether_every_letter_is_accounted_for(sides: MakeSides) -> None:
    """And how far it is."""
    both = await sides()
    await both.queue.add_many([{"n": n} for n in range(10)], **NEVER)
    heard: list[float] = []
    report = await both.queue.verify(on_progress=heard.append)
    assert report.clean and (report.letters, report.captured, report.difference) == (10, 10, 0)
    assert heard[-1] == 1.0


async def test_workers_and_findings_are_told(sides: MakeSides) -> None:
    """While one works, it is on the roster; the queue is fit for work."""
    both = await sides()
    both.truth.add_handler(lambda event: None)
    ready, stop = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: both.truth.run(ready=ready, stop=stop))
        await ready.wait()

        async def serving() -> WorkerInfo | None:
            [worker] = await both.queue.workers()
            return worker if worker.shards == (0, 1) else None

        assert await eventually(serving) == (await both.truth.workers())[0]
        stop.set()
    findings = await both.queue.health()
    assert {finding.check for finding in findings} >= {"server", "eviction", "layout", "shard 0", "shard 1"}
    assert all(finding.ok for finding in findings if finding.check.startswith("shard"))


# -- verbs ------------------------------------------------------------------------------------------------


async def test_a_letter_is_parked_sent_back_and_discarded(sides: MakeSides) -> None:
    """Each verb does what it says, and what does not fit the state is a conflict."""
    both = await sides()
    letter_id = await both.queue.add({}, **NEVER)
    await both.queue.park(letter_id, "poison")
    parked = await both.truth.get(letter_id)
    assert (parked.state, parked.counters.reason) == (LetterState.PARKED, "poison")
    with pytest.raises(LetterStateConflict) as refused:
        await both.queue.park(letter_id, "again")
    assert (refused.value.verb, refused.value.state) == ("park", "parked")
    assert refused.value.allowed == ("waiting", "scheduled", "suspect", "held")
    await both.queue.retry(letter_id, delay=60)
    again = await both.truth.get(letter_id)
    assert (again.state, again.counters.redrives) == (LetterState.SCHEDULED, 1)
    await both.queue.discard(letter_id, "test data")
    assert await listed(both.truth) == []
    assert (await both.truth.stats()).totals["discarded"] == 1


async def test_a_wrong_argument_of_a_verb_is_refused(sides: MakeSides) -> None:
    """And the letter is left as it is."""
    both = await sides()
    letter_id = await both.queue.add({}, **NEVER)
    with pytest.raises(ConfigError, match="delay"):
        await both.queue.retry(letter_id, delay=-1)
    with pytest.raises(ConfigError, match="why"):
        await both.queue.discard(letter_id, 5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which"):
        await both.queue.retry_many("0-1-1")
    assert await listed(both.truth) == [letter_id]


async def test_each_of_many_named_letters_gets_its_answer(sides: MakeSides) -> None:
    """Done, leased, or not found; also what is no id at all."""
    both = await sides(shards=1)
    ids = await both.queue.add_many([{}, {}, {}], **NEVER)
    [shard] = (await both.truth._store()).shards
    await shard.take("somebody", 1, ids=[ids[1]])
    heard: list[Answered] = []
    named = [*ids, "0-1-1", "nonsense", "", "0-" + "9" * 500 + "-0"]
    report = await both.queue.retry_many(named, delay=10, on_answers=heard.extend)
    assert (report.done, report.changed, report.leased, report.not_found) == (2, 0, 1, 4)
    assert report.answers == {one.letter_id: one.answer for one in heard}
    errors = {one.letter_id: one.error for one in heard}
    assert errors[ids[0]] is None and report.answers[ids[1]] is Answer.LEASED
    assert isinstance(errors[ids[1]], LetterStateConflict) and isinstance(errors["nonsense"], LetterNotFound)
    report = await both.queue.discard_many(ids, "test")
    assert (report.done, report.queue, report.dry_run) == (3, "default", False)


async def test_a_filter_reaches_every_letter_that_matches(sides: MakeSides) -> None:
    """And no other one; a dry run only counts."""
    both = await sides()
    of_a = await both.truth.add_many([{"n": n} for n in range(600)], type="A", **NEVER)
    of_b = await both.truth.add_many([{}, {}], type="B", **NEVER)
    dry = await both.queue.discard_many({"type": "A"}, "test", dry_run=True)
    assert (dry.done, dry.dry_run) == (600, True)
    assert len(await listed(both.truth)) == 602
    heard: list[Answered] = []
    report = await both.queue.discard_many({"type": "A"}, "test", on_answers=heard.extend)
    assert report.done == 600 and {one.letter_id for one in heard} == set(of_a)
    assert sorted(await listed(both.truth)) == sorted(of_b)
    assert (await both.queue.retry_many({}, delay=5)).done == 2


async def test_a_live_queue_gets_more_shards(sides: MakeSides) -> None:
    """And goes on taking letters."""
    both = await sides()
    assert await both.queue.reshard(4) == 4
    with pytest.raises(ConfigError, match="power of two"):
        await both.queue.reshard(3)
    await both.queue.add_many([{"n": n} for n in range(40)], **NEVER)
    assert (await both.queue.stats()).shards == 4


async def test_what_operators_did_can_be_read(sides: MakeSides) -> None:
    """An intent and an outcome for each call, the newest first."""
    both = await sides()
    letter_id = await both.queue.add({}, **NEVER)
    await both.queue.park(letter_id, "poison")
    await both.queue.discard_many({"state": "parked"}, "cleared")
    told = [entry async for entry in both.queue.audited()]
    assert [(entry.phase, entry.verb, entry.why) for entry in told] == [
        ("outcome", "discard", "cleared"),
        ("intent", "discard", "cleared"),
        ("outcome", "park", "poison"),
        ("intent", "park", "poison"),
    ]
    assert [entry.outcome for entry in told] == ["done", "", "done", ""] and told[0].done == 1
    assert told == [entry async for entry in both.truth.audited()] and len({entry.who for entry in told}) == 1
    page = await both.queue.audit_page(limit=1)
    assert page.entries == told[:1] and (await both.queue.audit_page(page.cursor, limit=1)).entries == told[1:2]


# -- what is written nowhere ------------------------------------------------------------------------------


async def test_no_payload_goes_into_a_log_line(sides: MakeSides, caplog: pytest.LogCaptureFixture) -> None:
    """Nor into an error's text."""
    caplog.set_level(logging.DEBUG)
    both = await sides(max_payload_bytes=100)
    letter_id = await both.queue.add({"card": "4111-1111"}, **NEVER)
    with pytest.raises(PayloadTooLarge) as refused:
        await both.queue.add({"card": "4111-1111" * 20})
    await both.queue.discard(letter_id, "test")
    assert "4111-1111" not in caplog.text + str(refused.value)
