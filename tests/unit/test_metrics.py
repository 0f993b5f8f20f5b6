"""Metrics of a process by themselves: bounded labels, exemplars; and snapshots: shared, and never falling."""

import itertools
import re
from pathlib import Path

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

from tests.support.holding import held
from tests.support.look import new
from tests.support.pages import Page
from uno.event_bus.dead_letter.letter import DeadLetterReason, Letter, NewLetter, Verb
from uno.event_bus.dead_letter.telemetry import names
from uno.event_bus.dead_letter.telemetry.collector import QueueCollector
from uno.event_bus.dead_letter.telemetry.metrics import PrometheusRecorder
from uno.event_bus.dead_letter.telemetry.names import OTHER, TABLE
from uno.event_bus.dead_letter.telemetry.recorder import NO_RECORDER, Recorder, Settled, together
from uno.event_bus.dead_letter.telemetry.snapshot import ServerSeen, ServerUsage, ShardSeen, Snapshot, Snapshots

QUEUE = "orders"
DOCS = Path(__file__).parents[2] / "docs/metrics.md"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def recorder(registry: CollectorRegistry) -> PrometheusRecorder:
    return PrometheusRecorder(QUEUE, registry)


def letter(type: str = "t", subscription: str = "s") -> Letter:
    return held(type=type.encode(), subscription=subscription.encode()).letter


def test_the_page_of_metrics_in_the_docs_is_the_table() -> None:
    """Each row once, in the same order: sample, kind, labels, scope."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    told = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), scope) for name, kind, labels, scope in rows]
    assert told == [(row.sample, row.kind, row.labels, row.scope) for row in TABLE.values()]


def test_labels_stay_bounded_whatever_applications_name(
    recorder: PrometheusRecorder, registry: CollectorRegistry
) -> None:
    """200 subscriptions × 50 types, words of their own for reasons, long names: under 2 MB, and nothing uncounted."""
    reasons = [*DeadLetterReason, *(f"no stock in warehouse {n}" for n in range(500))]
    reason_of = itertools.cycle(reasons)
    ends = itertools.cycle(itertools.product(Verb, ["", *DeadLetterReason]))
    for type_at, subscription_at in itertools.product(range(50), range(200)):
        type, subscription = f"shop.orders.{type_at}." + "x" * 200, f"subscription-{subscription_at}\n\x1b[31m"
        # The pairs that are known get every reason: that is the most that a page can have.
        for _ in range(600 if type_at == 0 and subscription_at < 100 else 1):
            recorder.captured(QUEUE, [NewLetter("e", type, b"", subscription=subscription, reason=next(reason_of))])
            verb, reason = next(ends)
            recorder.settled(QUEUE, [Settled(letter(type, subscription), verb, reason)])
    page = Page(registry)
    assert len(page.bytes) < 2_000_000
    captures = page.samples(names.CAPTURES)
    assert sum(sample.value for sample in captures) == page.value(names.OUTCOMES) == 50 * 200 + 100 * 599
    pairs = {(sample.labels["type"], sample.labels["subscription"]) for sample in captures}
    assert len(pairs) == names.MOST_PAIRS + 1 and (OTHER, OTHER) in pairs
    assert pairs == {(x.labels["type"], x.labels["subscription"]) for x in page.samples(names.OUTCOMES)}
    assert len({sample.labels["reason"] for sample in captures}) == len(DeadLetterReason) + 10 + 1
    assert max(len(type) for type, _ in pairs) == 100
    assert all(text.isprintable() for pair in pairs for text in pair)


def test_an_error_leads_to_the_trace_of_its_attempt(recorder: PrometheusRecorder, registry: CollectorRegistry) -> None:
    """Its counters and the duration carry the ids of the current span."""
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("process") as span:
        recorder.attempted(QUEUE, letter(), 0.2, "timeout")
    context, page = span.get_span_context(), Page(registry)
    expected = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    found = [
        *page.samples(names.DLQ_ERRORS, cause="timeout"),
        *page.samples(names.PROCESSING_ERRORS),
        *page.samples(names.PROCESSING_SECONDS, "_bucket", le="0.25"),
    ]
    assert [sample.exemplar and sample.exemplar.labels for sample in found] == [expected] * 3


def test_a_span_that_is_not_sampled_leads_nowhere(recorder: PrometheusRecorder, registry: CollectorRegistry) -> None:
    """Nor does an attempt without a span."""
    recorder.attempted(QUEUE, letter(), 0.2, "handler")
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("process"):
        recorder.attempted(QUEUE, letter(), 0.2, "handler")
    page = Page(registry)
    assert page.value(names.DLQ_ERRORS, cause="handler") == 2
    assert b"trace_id" not in page.bytes


def test_errors_are_there_before_the_first_one(recorder: PrometheusRecorder, registry: CollectorRegistry) -> None:
    """At 0: the first error would be no increase of a series that it begins."""
    page = Page(registry)
    assert {s.labels["cause"]: s.value for s in page.samples(names.DLQ_ERRORS)} == dict.fromkeys(
        ("handler", "timeout", "invalid", "lease", "store"), 0
    )


def test_two_recorders_hear_the_same(registry: CollectorRegistry) -> None:
    """And one alone is not wrapped."""
    other = CollectorRegistry()
    first, second = PrometheusRecorder(QUEUE, registry), PrometheusRecorder(QUEUE, other)
    both = together(first, second)
    both.captured(QUEUE, [new()])
    both.reclaimed(QUEUE, 3)
    for page in (Page(registry), Page(other)):
        assert (page.value(names.CAPTURES), page.value(names.RECLAIMED)) == (1, 3)
    lone = Recorder()
    assert together(NO_RECORDER, lone) is together(lone, NO_RECORDER) is lone


# ------------------------------------------------------------------------------------ snapshots


def shard(is_up: bool = True, **books: int | str) -> ShardSeen:
    return ShardSeen(is_up, {"now": 1_000_000, "open": 0, **books}, 50.0)


def page_of(snapshot: Snapshot) -> Page:
    registry = CollectorRegistry()
    registry.register(QueueCollector(lambda: snapshot))
    return Page(registry)


@pytest.mark.timed(0.05)
async def test_scrapes_at_the_same_time_share_one_snapshot() -> None:
    """And those of the next moment; the first one after that takes a new one."""
    taken: list[Snapshot | None] = []

    async def take(before: Snapshot | None) -> Snapshot:
        taken.append(before)
        await anyio.sleep(0.01)
        return Snapshot(QUEUE, taken_at=anyio.current_time())

    snapshots = Snapshots(take, fresh_s=0.2)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(snapshots.refresh)
    first = await snapshots.refresh()
    assert taken == [None] and snapshots.latest is first
    await anyio.sleep(0.21)
    await snapshots.refresh()
    assert taken == [None, first]


async def test_a_scrape_that_is_given_up_leaves_the_next_one_alone() -> None:
    """It takes its own snapshot."""
    began = anyio.Event()

    async def take(before: Snapshot | None) -> Snapshot:
        if not began.is_set():
            began.set()
            await anyio.sleep_forever()
        return Snapshot(QUEUE, taken_at=anyio.current_time())

    snapshots = Snapshots(take)
    async with anyio.create_task_group() as group:
        group.start_soon(snapshots.refresh)
        await began.wait()
        group.cancel_scope.cancel()
    assert (await snapshots.refresh()).queue == QUEUE


def test_a_total_does_not_fall_when_a_failover_takes_some_of_it_back() -> None:
    """It waits until the shard is there again."""
    before = shard(captured=1_000, resolved=900)
    assert shard(captured=990, resolved=905).after(before).total("captured") == 1_000
    assert shard(captured=990, resolved=905).after(before).total("resolved") == 905
    assert shard(captured=1_001).after(before).total("captured") == 1_001


def test_a_total_of_a_shard_that_lost_its_books_goes_on_from_where_it_ended() -> None:
    """As often as that happens, also while the shard is away, and by each total for itself; sizes are as they are."""
    seen = shard(captured=1_000, crashed=1, open=50)
    for captured, crashed in ((0, 0), (10, 1), (7, 3), (0, 3), (5, 4)):
        seen = shard(captured=captured, crashed=crashed, open=captured).after(seen)
    assert (seen.total("captured"), seen.total("crashed"), seen.number("open")) == (1_015, 5, 5)
    [away] = Snapshot(QUEUE, (seen,)).away().shards
    assert away.total("captured") == 1_015
    assert shard(captured=6).after(away).total("captured") == 1_016


def test_totals_are_not_told_before_every_shard_has_told_them() -> None:
    """They would be too small, and their jump would look like new events. Sizes and shards are told."""
    page = page_of(Snapshot(QUEUE, (shard(open=3, captured=5), ShardSeen(False)), taken_at=50.0))
    assert page.samples(names.CAPTURED) == []
    assert page.value(names.QUEUE_SIZE) == 3
    assert page.by(names.SHARD_UP, "shard") == {"0": 1} and len(page.samples(names.SHARD_UP)) == 2
    page = page_of(Snapshot(QUEUE, (shard(captured=5), shard(False, captured=7)), taken_at=50.0))
    assert page.value(names.CAPTURED) == 12


def test_ages_are_of_the_worst_shard_and_go_on_while_it_is_away() -> None:
    """By each shard's own time; letters that wait count as due like those that are scheduled."""
    shards = (
        shard(oldest="990000-0", next_due=995_000),
        shard(False, oldest="980000-0", suspect_due=1_000_500),
        shard(oldest="999000-0", waiting_due=993_000),
    )
    page = page_of(Snapshot(QUEUE, shards, taken_at=52.0))
    assert (page.value(names.OLDEST_AGE), page.value(names.DUE_AGE)) == (22, 9)
    assert page_of(Snapshot(QUEUE, (shard(next_due=1_000_001),), taken_at=50.0)).value(names.DUE_AGE) == 0


def test_what_strangers_have_made_no_number_costs_no_page() -> None:
    page = page_of(Snapshot(QUEUE, (shard(next_due="inf", suspect_due="nan", oldest="x"),), taken_at=50.0))
    assert (page.value(names.DUE_AGE), page.value(names.OLDEST_AGE)) == (0, 0)


def test_memory_without_a_limit_of_its_own_is_told_by_the_machines() -> None:
    """A server that tells neither has no ratio; one that is away is told as it was."""
    usage = ServerUsage(70, 100, 1.5, 10, 20, True)
    servers = {"a": ServerSeen(False, usage), "b": ServerSeen(True, usage._replace(memory_limit=0, may_evict=False))}
    page = page_of(Snapshot(QUEUE, (), servers))
    assert page.by(names.SERVER_MEMORY_RATIO, "server") == {"a": 0.7}
    assert page.by(names.SERVER_UP, "server") == {"b": 1}
    assert page.value(names.EVICTING_SERVERS) == 1
    assert page.by(names.SERVER_NETWORK, "direction", server="a") == {"received": 10, "sent": 20}


def test_workers_are_not_told_while_the_registry_is_away() -> None:
    """Nobody is called out because a list could not be read."""
    page = page_of(Snapshot(QUEUE, (shard(), shard()), workers=None))
    assert page.samples(names.WORKERS) == page.samples(names.SHARD_WORKERS) == []
    page = page_of(Snapshot(QUEUE, (shard(), shard()), workers=((0,), (0, 5))))
    assert page.value(names.WORKERS) == 2
    assert [sample.value for sample in page.samples(names.SHARD_WORKERS)] == [2, 0]
