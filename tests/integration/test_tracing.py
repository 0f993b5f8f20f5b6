"""Traces: every attempt on a letter hangs on the trace of its capture, whoever makes it, and whenever."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from redis.asyncio import Redis

from tests.integration.conftest import Queues
from tests.support.places import Place
from tests.support.servers import Server
from tests.support.spans import Link, Recorded, Traces, read_spans
from tests.support.spools import all_sent
from tests.support.waiting import eventually, running
from uno.event_bus import EventBus
from uno.event_bus.dead_letter import Discard, Letter, Park, PartialCapture, QueueFull, RetryLater
from uno.event_bus.dead_letter.blocking import DeadLetterQueue as BlockingQueue

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
IDS = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


@pytest.fixture
def traces() -> Traces:
    return Traces()


def previous(link: Link) -> bool:
    return link.attributes.get("dlq.link.type") == "previous_attempt"


@asynccontextmanager
async def traced_worker(place: Place, spans: Path) -> AsyncGenerator[int]:
    """A worker in a process of its own; yields its pid."""
    config = {"shards": 2, "retry_delay": 3600, "max_retries": 5}
    settings = {"url": place.url, "config": config, "spans": str(spans)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.traced_worker", json.dumps(settings), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process.pid
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def assert_attempts_on(sent: Recorded, attempts: list[Recorded], own: list[Recorded]) -> None:
    """Three attempts on one trace: children of and linked to the capture, each linked to the one before."""
    assert [span.attributes["dlq.attempt"] for span in attempts] == [1, 2, 3]
    assert {span.trace for span in attempts} == {sent.trace}
    assert {span.parent for span in attempts} == {sent.ids[1]}
    assert all(Link(sent.ids) in span.links for span in attempts)
    before = [[link for link in span.links if previous(link)] for span in attempts]
    assert before == [
        [],
        [Link(attempts[0].ids, {"dlq.link.type": "previous_attempt", "dlq.attempt": 1})],
        [Link(attempts[1].ids, {"dlq.link.type": "previous_attempt", "dlq.attempt": 2})],
    ]
    assert [len(span.links) for span in attempts] == [1, 2, 2]
    assert [span.status for span in attempts] == ["ERROR", "ERROR", "UNSET"]
    # What the handler itself traces hangs below its attempt.
    assert [span.parent for span in own] == [span.ids[1] for span in attempts]


async def test_three_attempts_in_two_processes_are_one_trace(
    queues: Queues, place: Place, traces: Traces, tmp_path: Path
) -> None:
    """Captured here; attempt 1 by one worker process, 2 and 3 by another, after an operator has sent it back."""
    queue, spans = queues(tracer_provider=traces.provider), tmp_path / "spans.jsonl"
    with traces.tracer.start_as_current_span("checkout") as checkout:
        letter_id = await queue.add({"until": 3}, type="order", event_id="e1", delay=0)

    async def failed(times: int) -> Any:
        return (await queue.get(letter_id)).counters.failures == times

    async with traced_worker(place, spans) as first:
        await eventually(lambda: failed(1))
    async with traced_worker(place, spans) as second:
        await queue.retry(letter_id)
        await eventually(lambda: failed(2))
        await queue.retry(letter_id)
        await eventually(lambda: _is_empty(queue))
    sent, found = traces.one("send default"), read_spans(spans)
    attempts = [span for span in found if span.name == "process default"]
    own = [span for span in found if span.name == "charge the card"]
    assert sent.parent == f"{checkout.get_span_context().span_id:016x}" and sent.kind == "PRODUCER"
    assert [span.pid for span in attempts] == [first, second, second] and first != second
    assert_attempts_on(sent, attempts, own)
    # Takes and settles are of many letters: alone, linked to what they are about.
    takes = [span for span in found if span.name == "receive default"]
    assert [span.links for span in takes] == [[Link(sent.ids)]] * 3
    assert {(span.parent, span.kind) for span in takes} == {(None, "CLIENT")}
    settles = [span for span in found if span.attributes.get("messaging.operation.type") == "settle"]
    assert [span.name for span in settles] == ["retry default", "retry default", "ack default"]
    assert [span.links for span in settles] == [[Link(span.ids)] for span in attempts]
    assert {(span.parent, span.kind, span.status) for span in settles} == {(None, "CLIENT", "UNSET")}
    assert len(found) == 12


async def _is_empty(queue: Any) -> bool:
    return (await queue.stats()).open == 0


async def test_attributes_of_every_span(queues: Queues, traces: Traces) -> None:
    """Names and values are those of docs/tracing.md."""
    queue = queues(tracer_provider=traces.provider, retry_delay=3600, max_retries=4)

    @queue.handler("order")
    async def handle(event: dict[str, Any]) -> None:
        raise ConnectionError("the bank is away")

    letter_id = await queue.add({"n": 1}, type="order", error=OSError("no"), delay=0, correlation_id="c-7")
    await queue.process()
    letter = await queue.get(letter_id)
    shard = letter_id.partition("-")[0]
    common = {"messaging.system": "redis", "messaging.destination.name": "default"}
    sent = traces.one("send default")
    assert sent.scope == "uno.event_bus.dead_letter" and sent.schema == "https://opentelemetry.io/schemas/1.44.0"
    assert sent.attributes == common | {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": letter_id,
        "messaging.message.conversation_id": "c-7",
        "dlq.reason": "handler_failed",
        "dlq.error.fingerprint": letter.fingerprint,
    }
    attempt = traces.one("process default")
    consumer = attempt.attributes["messaging.client.id"]
    mine = common | {"messaging.consumer.group.name": "workers", "messaging.client.id": consumer}
    fingerprint = attempt.attributes["dlq.error.fingerprint"]
    assert consumer == letter.history.attempts[0].worker and fingerprint.startswith("1:")
    assert attempt.kind == "CONSUMER" and attempt.status == "ERROR"
    assert attempt.attributes == mine | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": letter_id,
        "messaging.message.conversation_id": "c-7",
        "messaging.destination.partition.id": shard,
        "dlq.attempt": 1,
        "dlq.max_attempts": 4,
        "dlq.reason": "handler_failed",
        "dlq.error.fingerprint": fingerprint,
        "error.type": "ConnectionError",
    }
    [(name, facts)] = attempt.events
    assert name == "exception" and facts["exception.type"] == "ConnectionError"
    assert facts["exception.message"] == "the bank is away" and "<locals>.handle" in facts["exception.stacktrace"]
    received, settled = traces.one("receive default"), traces.one("retry default")
    where = {name: received.attributes.pop(name) for name in list(received.attributes) if name.startswith("server.")}
    assert where["server.address"]
    assert received.attributes == mine | {
        "messaging.operation.name": "receive",
        "messaging.operation.type": "receive",
        "messaging.destination.partition.id": shard,
        "messaging.batch.message_count": 1,
    }
    assert settled.attributes == mine | where | {
        "messaging.operation.name": "retry",
        "messaging.operation.type": "settle",
        "messaging.destination.partition.id": shard,
        "messaging.batch.message_count": 1,
    }
    assert received.start_ns <= received.end_ns <= attempt.start_ns <= attempt.end_ns <= settled.end_ns


async def test_a_batch_has_a_context_for_each_letter(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider)

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None: ...

    with traces.tracer.start_as_current_span("nightly") as nightly:
        ids = await queue.add_many([{"n": n} for n in range(5)], type="order", delay=0)
    creates, sent = traces.all("create default"), traces.one("send default")
    parent = f"{nightly.get_span_context().span_id:016x}"
    assert [span.attributes["messaging.message.id"] for span in creates] == ids
    assert {(span.kind, span.parent, span.attributes["messaging.operation.type"]) for span in creates} == {
        ("PRODUCER", parent, "create")
    }
    assert sent.kind == "CLIENT" and sent.parent == parent and sent.attributes["messaging.batch.message_count"] == 5
    assert sent.links == [Link(span.ids) for span in creates]
    await queue.process()
    attempts = {span.attributes["messaging.message.id"]: span for span in traces.all("process default")}
    assert [attempts[id].parent for id in ids] == [span.ids[1] for span in creates]
    assert sum(span.attributes["messaging.batch.message_count"] for span in traces.all("ack default")) == 5
    assert sum(len(span.links) for span in traces.all("receive default")) == 5


async def test_without_create_spans_a_batch_shares_the_context_of_its_send(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider, create_spans=False)
    ids = await queue.add_many([{"n": n} for n in range(3)], type="order", delay=0)
    sent = traces.one("send default")
    assert sent.kind == "PRODUCER" and traces.all() == [sent]
    assert {(await queue.get(id)).headers["traceparent"].split("-")[2] for id in ids} == {sent.ids[1]}


async def test_a_capture_that_fails_in_part_says_which_letters_failed(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider, max_queue_size=1, shards=1)
    with pytest.raises(PartialCapture):
        await queue.add_many([{"n": n} for n in range(3)], type="order", delay=60)
    created = traces.all("create default")
    assert [span.status for span in created] == ["UNSET", "UNSET", "ERROR"]  # a shard may pass its share by a tenth
    assert created[2].attributes["error.type"].endswith("errors.QueueFull")
    sent = traces.one("send default")
    assert sent.status == "ERROR" and sent.attributes["error.type"].endswith("errors.PartialCapture")
    traces.clear()
    with pytest.raises(QueueFull):
        await queue.add({"n": 4}, type="order")
    assert traces.one("send default").attributes["error.type"].endswith("errors.QueueFull")


@pytest.mark.parametrize("how", ["headers", "metadata"])
async def test_a_context_of_the_caller_wins(queues: Queues, traces: Traces, how: str) -> None:
    """It stands alone: nothing of the current trace is mixed into it; the send links to it."""
    queue = queues(tracer_provider=traces.provider)
    given: Any = {"headers": {"traceparent": TRACEPARENT}} if how == "headers" else {"traceparent": TRACEPARENT}
    token = context.attach(baggage.set_baggage("tenant", "another"))
    with traces.tracer.start_as_current_span("other"):
        one = await queue.add({"n": 1}, type="order", **given)
        [many] = await queue.add_many([{"n": 2}], type="order", **given)
    context.detach(token)
    for letter_id in (one, many):
        assert (await queue.get(letter_id)).headers == {"traceparent": TRACEPARENT}
    assert [(span.kind, span.links) for span in traces.all("send default")] == [("CLIENT", [Link(IDS)])] * 2
    assert traces.all("create default") == []


async def test_off_the_headers_are_as_they_were(queues: Queues) -> None:
    """Without a provider an application's own trace flows on, and nothing else is added."""
    queue = queues()
    span = trace.NonRecordingSpan(
        trace.SpanContext(int(IDS[0], 16), int(IDS[1], 16), True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
    )
    bare = await queue.add({"n": 1}, type="order", delay=0)
    with trace.use_span(span):
        own = await queue.add({"n": 2}, type="order", tenant="t1", delay=0)
        [many] = await queue.add_many([{"n": 3}], type="order", delay=0)
    assert (await queue.get(bare)).headers == {}
    assert (await queue.get(own)).headers == {"traceparent": TRACEPARENT, "tenant": "t1"}
    assert (await queue.get(many)).headers == {"traceparent": TRACEPARENT}

    @queue.handler()
    async def handle(event: dict[str, Any], letter: Letter) -> None:
        assert not trace.get_current_span().get_span_context().is_valid
        raise RetryLater(60)

    await queue.process()
    assert [letter.history.trace async for letter in queue.letters()] == [{}] * 3


async def test_baggage_and_trace_state_reach_the_handler(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider)
    seen: list[tuple[str, object, str]] = []

    def note(how: str) -> None:
        state = trace.get_current_span().get_span_context().trace_state
        seen.append((how, baggage.get_baggage("tenant"), state.to_header()))

    @queue.handler("async")
    async def in_loop(event: dict[str, Any]) -> None:
        note("async")

    @queue.handler("timed", timeout=5)
    async def timed(event: dict[str, Any]) -> None:
        note("timed")

    @queue.handler("thread")
    def in_thread(event: dict[str, Any]) -> None:
        note("thread")

    for type in ("async", "timed", "thread"):
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "tenant=acme"}
        await queue.add({}, type=type, headers=headers, delay=0)
    await queue.process()
    assert sorted(seen) == [(how, "acme", "vendor=1") for how in ("async", "thread", "timed")]
    assert baggage.get_baggage("tenant") is None


@pytest.mark.parametrize("kind", ["plain", "timed", "limited", "thread", "thread in line"])
async def test_the_attempt_is_current_in_every_kind_of_handler(queues: Queues, traces: Traces, kind: str) -> None:
    """Its own spans and logs hang below it; and nothing of it is left in the task afterwards."""
    queue = queues(tracer_provider=traces.provider, concurrency=1)

    async def in_loop(event: dict[str, Any]) -> None:
        with traces.tracer.start_as_current_span("own"):
            await anyio.lowlevel.checkpoint()

    def in_thread(event: dict[str, Any]) -> None:
        with traces.tracer.start_as_current_span("own"):
            pass

    how: dict[str, Any] = {"timed": {"timeout": 5}, "limited": {"concurrency": 1}, "thread in line": {"concurrency": 1}}
    queue.add_handler(in_thread if kind.startswith("thread") else in_loop, **how.get(kind, {}))
    await queue.add_many([{"n": n} for n in range(3)], type="order", delay=0)
    await queue.process()
    attempts, own = traces.all("process default"), traces.all("own")
    assert len(attempts) == 3 and [span.parent for span in own] == [span.ids[1] for span in attempts]
    assert len({span.trace for span in attempts}) == 3


@pytest.mark.parametrize("broken", ["", "00-x", "ff-" + TRACEPARENT[3:], "00-" + "0" * 32 + "-b7ad6b7169203331-01", 7])
async def test_a_broken_context_harms_nothing(queues: Queues, traces: Traces, broken: Any) -> None:
    """The attempts make a trace of their own then, each below the one before."""
    queue = queues(tracer_provider=traces.provider, retry_delay=0)
    headers: Any = {"traceparent": broken, "baggage": [1]}
    await queue.add({}, type="order", headers=headers, delay=0)
    runs = 0

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError(runs)

    async with running(queue):
        await eventually(lambda: _is_empty(queue))
    first, second, third = traces.all("process default")
    assert first.parent is None and first.links == []
    assert (second.parent, third.parent) == (first.ids[1], second.ids[1]) and {second.trace, third.trace} == {
        first.trace
    }
    assert [link.ids for link in third.links] == [second.ids]


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "fb"])
async def test_sampled_is_a_bit_among_others(queues: Queues, traces: Traces, flags: str) -> None:
    """W3C's level 2 has more flags than the one: `-03` is sampled, `-02` is not. The default sampler obeys."""
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

    traces = Traces(ParentBased(ALWAYS_ON))
    queue = queues(tracer_provider=traces.provider)
    seen = []

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")

    await queue.add({}, type="order", headers={"traceparent": TRACEPARENT[:-2] + flags}, delay=0)
    await queue.process()
    assert len(traces.all("process default")) == int(flags, 16) & 1
    assert seen == [IDS[0]], "what is not recorded is carried on all the same"


async def test_what_was_not_sampled_is_carried_through_all_attempts(queues: Queues) -> None:
    traces = Traces(ALWAYS_OFF)
    queue = queues(tracer_provider=traces.provider, retry_delay=0)
    seen = []

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        seen.append(carrier["traceparent"])
        if len(seen) < 2:
            raise ValueError

    letter_id = await queue.add({}, type="order", delay=60)
    captured = (await queue.get(letter_id)).headers["traceparent"]
    await queue.retry(letter_id)
    async with running(queue):
        await eventually(lambda: _is_empty(queue))
    assert traces.all() == []
    assert [text.split("-")[1] for text in seen] == [captured.split("-")[1]] * 2
    assert all(int(text.split("-")[3], 16) & 1 == 0 for text in [captured, *seen])


async def test_empty_polls_make_no_spans(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider)
    queue.add_handler(lambda event: None)
    await queue.process()
    async with running(queue):
        await anyio.sleep(0.1)  # what is to be seen is that nothing comes of it
    assert await queue.replay_events() is not None
    assert traces.all() == []


async def test_the_engine_calls_nothing_that_instrumentation_of_redis_wraps(
    queues: Queues, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry's wraps `execute_command` and pipelines: polls, heartbeats and scripts must make no spans there."""
    from redis.asyncio.client import Pipeline
    from redis.asyncio.cluster import ClusterPipeline, RedisCluster

    called: list[str] = []

    def wrapped(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            called.append(f"{owner.__name__}.{name} {args[1:2]}")
            return original(*args, **more)

        monkeypatch.setattr(owner, name, call)

    for owner, names in (
        (Redis, ("execute_command", "pipeline")),
        (RedisCluster, ("execute_command", "pipeline")),
        (Pipeline, ("execute", "immediate_execute_command")),
        (ClusterPipeline, ("execute",)),
    ):
        for name in names:
            wrapped(owner, name)
    queue = queues(tracer_provider=traces.provider)

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None: ...

    async with running(queue):
        await queue.add_many([{"n": n} for n in range(3)], type="order", delay=0)
        await eventually(lambda: _is_empty(queue))
        await anyio.sleep(0.05)
    assert called == []


@pytest.mark.timed(0.2)
async def test_releases_make_no_attempt_and_what_is_cut_short_says_why(queues: Queues, traces: Traces) -> None:
    """Nobody handles one letter; the handler of the other does not end before the worker does."""
    queue = queues(tracer_provider=traces.provider, shutdown_grace=0.0)
    begun = anyio.Event()

    @queue.handler("slow")
    async def slow(event: dict[str, Any]) -> None:
        begun.set()
        await anyio.sleep_forever()

    await queue.add({}, type="nobody's", delay=0)
    slow_id = await queue.add({}, type="slow", delay=0)
    async with running(queue):
        await begun.wait()
        await eventually(lambda: traces.all("release default"))
    attempt = traces.one("process default")
    assert attempt.attributes["messaging.message.id"] == slow_id
    assert attempt.status == "ERROR" and attempt.attributes["error.type"] == "cancelled"
    sent = {span.attributes["messaging.message.id"]: span for span in traces.all("send default")}
    linked = [link.ids for span in traces.all("release default") for link in span.links]
    [untried] = [span for id, span in sent.items() if id != slow_id]
    assert sorted(linked) == sorted([untried.ids, attempt.ids])
    assert (await queue.get(slow_id)).history.trace == {}


@pytest.mark.parametrize(
    ("raised", "settle", "status", "error_type"),
    [
        (RetryLater(3600), "retry", "UNSET", None),
        (Discard("not ours"), "discard", "UNSET", None),
        (Park("by hand"), "dead_letter", "ERROR", "uno.event_bus.dead_letter.decision.Park"),
        (KeyError("k"), "dead_letter", "ERROR", "KeyError"),
    ],
)
async def test_what_a_handler_decides_is_no_failure(
    queues: Queues, traces: Traces, raised: Exception, settle: str, status: str, error_type: str | None
) -> None:
    queue = queues(tracer_provider=traces.provider, max_retries=1)

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        raise raised

    letter_id = await queue.add({}, type="order", delay=0)
    await queue.process()
    attempt = traces.one("process default")
    assert (attempt.status, attempt.attributes.get("error.type")) == (status, error_type)
    assert traces.one(f"{settle} default").links == [Link(attempt.ids)]
    if settle != "discard":
        assert (await queue.get(letter_id)).history.trace["traceparent"].split("-")[1:3] == list(attempt.ids)


async def test_an_invalid_event_is_a_failed_attempt_without_a_word_of_it(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider)

    @queue.handler("order")
    async def handle(event: list[int]) -> None: ...

    await queue.add(b'{"card": "4111-secret"}', type="order", delay=0)
    await queue.process()
    attempt = traces.one("process default")
    assert attempt.attributes["dlq.reason"] == "invalid_event" and attempt.status == "ERROR"
    assert "4111-secret" not in repr(traces.all())
    traces.one("dead_letter default")


async def test_replay_makes_the_same_spans_below_the_callers(queues: Queues, traces: Traces) -> None:
    """The letters keep their traces; takes and settles belong to the span in which the replay was asked for."""
    queue = queues(tracer_provider=traces.provider, retry_delay=3600)
    runs = 0

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError

    await queue.add({}, type="order")
    await queue.replay_events()
    with traces.tracer.start_as_current_span("by hand") as span:
        await queue.replay_events()
    sent, [first, second] = traces.one("send default"), traces.all("process default")
    assert {first.parent, second.parent} == {sent.ids[1]} and {first.trace, second.trace} == {sent.trace}
    assert [link.ids for link in second.links] == [sent.ids, first.ids]
    by_hand = f"{span.get_span_context().span_id:016x}"
    assert traces.all("receive default")[1].parent == by_hand == traces.one("ack default").parent


async def test_a_worker_outlives_the_span_that_it_was_started_in(queues: Queues, traces: Traces) -> None:
    """Else all that it ever did would hang on the application's start."""
    queue = queues(tracer_provider=traces.provider)
    seen = []

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        seen.append(baggage.get_baggage("started"))

    with traces.tracer.start_as_current_span("start") as start:
        token = context.attach(baggage.set_baggage("started", "yes"))
        async with running(queue):
            context.detach(token)
            await queue.add({}, type="order", headers={"traceparent": TRACEPARENT}, delay=0)
            await eventually(lambda: _is_empty(queue))
    started = f"{start.get_span_context().trace_id:032x}"
    assert [span.parent for span in traces.all("receive") + traces.all("ack")] == [None, None]
    assert traces.one("process default").trace == IDS[0] != started and seen == [None]


async def test_an_event_bus_captures_in_the_publishers_trace(queues: Queues, traces: Traces) -> None:
    queue = queues(tracer_provider=traces.provider, retry_delay=0)
    bus, runs = EventBus(queue), 0

    async def charge(event: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ConnectionError("the bank is away")

    bus.subscribe("order", charge)
    with traces.tracer.start_as_current_span("publish") as publish:
        await bus.publish({"n": 1}, type="order")
    await queue.process()
    sent, attempt = traces.one("send default"), traces.one("process default")
    assert sent.parent == f"{publish.get_span_context().span_id:016x}"
    assert (attempt.parent, attempt.status) == (sent.ids[1], "UNSET")


async def test_a_spooled_letter_keeps_the_context_it_was_captured_with(
    spooling: Queues, stoppable: Server, traces: Traces
) -> None:
    queue = spooling(tracer_provider=traces.provider)
    stoppable.stop()
    with traces.tracer.start_as_current_span("checkout"):
        assert await queue.add({"n": 1}, type="order", event_id="e", delay=0) == "spooled:e"
        await queue.add_many([{"n": 2}, {"n": 3}], type="order", delay=0)
    stoppable.start()
    await all_sent(queue)

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None: ...

    await queue.process()
    contexts = [traces.one("send default", kind="PRODUCER").ids[1], *(span.ids[1] for span in traces.all("create"))]
    assert sorted(span.parent or "" for span in traces.all("process default")) == sorted(contexts)
    assert traces.all("send")[0].attributes["messaging.message.id"] == "spooled:e"


async def test_a_settle_that_the_store_cannot_take_says_so_once(
    queues: Queues, stoppable: Server, traces: Traces
) -> None:
    queue = queues(stoppable.url, tracer_provider=traces.provider, operation_timeout=0.2, shards=1, queue="outage")

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        stoppable.stop()

    await queues(stoppable.url, shards=1, queue="outage").add({}, type="order", delay=0)
    async with running(queue):
        await eventually(lambda: traces.all("ack outage"))
        await anyio.sleep(0.5)
        [failed] = traces.all("ack outage")
        stoppable.start()
        await eventually(lambda: len(traces.all("ack outage")) == 2)
    assert failed.status == "ERROR" and failed.attributes["error.type"].endswith("errors.StoreUnavailable")
    assert [span.status for span in traces.all("ack outage", where=lambda span: span != failed)] == ["UNSET"]
    assert {tuple(link.ids for link in span.links) for span in traces.all("ack outage")} == {
        (traces.one("process outage").ids,)
    }


async def test_the_blocking_queue_captures_in_its_callers_trace(place: Place, queues: Queues, traces: Traces) -> None:
    def capture() -> str:
        with (
            traces.tracer.start_as_current_span("checkout"),
            BlockingQueue(place.url, queues().config, tracer_provider=traces.provider) as queue,
        ):
            return queue.add({}, type="order")

    letter_id = await anyio.to_thread.run_sync(capture)
    sent = traces.one("send default")
    assert sent.parent == traces.one("checkout").ids[1]
    assert (await queues().get(letter_id)).headers["traceparent"].split("-")[2] == sent.ids[1]


class _Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("the processor is broken")


async def test_what_traces_cannot_harm_letters(
    queues: Queues, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    traces.provider.add_span_processor(_Broken())
    queue = queues(tracer_provider=traces.provider)
    done = []

    @queue.handler()
    async def handle(event: dict[str, Any]) -> None:
        done.append(event["n"])

    with caplog.at_level(logging.CRITICAL):
        await queue.add({"n": 0}, type="order", delay=0)
        await queue.add_many([{"n": n} for n in range(1, 4)], type="order", delay=0)
        report = await queue.process()
    assert report.resolved == 4 and sorted(done) == [0, 1, 2, 3] and traces.all() == []


class _BrokenPropagator(TextMapPropagator):
    """One of these methods raises."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def _do(self, name: str) -> None:
        if name == self._broken:
            raise RuntimeError("the propagator is broken")

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        self._do("extract")
        return context

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        self._do("inject")

    @property
    def fields(self) -> set[str]:
        self._do("fields")
        return {"x-trace"}


@pytest.mark.parametrize("broken", ["extract", "inject", "fields"])
async def test_a_propagator_that_raises_costs_no_capture(broken: str, queues: Queues, traces: Traces) -> None:
    """Nor the headers of its caller; and the letter is worked off."""
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(_BrokenPropagator(broken))
    try:
        queue = queues(tracer_provider=traces.provider)
        queue.add_handler(lambda event: None)
        id = await queue.add(1, delay=0, headers={"x-trace": "1", "tenant": "a"})
        await queue.add(2, delay=0)
        await queue.add_many([3, 4], delay=0)
        assert (await queue.get(id)).headers == {"x-trace": "1", "tenant": "a"}
        assert (await queue.process()).resolved == 4
    finally:
        propagate.set_global_textmap(before)
