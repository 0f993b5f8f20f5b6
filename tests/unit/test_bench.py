"""The benchmark's own arithmetic: histograms, sets of moments, figures of nodes, and what it refuses."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter.bench.bitset import TICK_S, BitSet, longest_gap_s
from uno.event_bus.dead_letter.bench.figures import (
    Tally,
    balance,
    latency_of,
    letters_of_nodes,
    node_figures,
    notes_on,
    process_figures,
    rate,
)
from uno.event_bus.dead_letter.bench.histogram import Histogram
from uno.event_bus.dead_letter.bench.messages import Produced, Worked
from uno.event_bus.dead_letter.bench.nodes import NodeState, cpu_used_s
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.bench.outage import Outage
from uno.event_bus.dead_letter.bench.plan import Plan
from uno.event_bus.dead_letter.bench.report import Setup
from uno.event_bus.dead_letter.bench.reporter import books_of
from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.errors import ConfigError

# -- histograms -------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 4000), min_size=1, max_size=200), st.sampled_from([1, 50, 95, 99, 100]))
def test_a_percentile_is_at_most_four_and_a_half_percent_too_high(durations: list[float], percent: int) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    exact = sorted(durations)[-(-len(durations) * percent // 100) - 1]
    told = histogram.percentile(percent)
    assert told is not None and exact * (1 - 1e-9) <= told <= exact * 1.045
    assert histogram.longest_s == max(durations)


@given(st.lists(st.floats(0, 10_000)), st.lists(st.floats(-1, 10_000)))
def test_merged_histograms_are_that_of_all_durations(some: list[float], others: list[float]) -> None:
    one, two, both = Histogram(), Histogram(), Histogram()
    for histogram, durations in ((one, some), (two, others), (both, [*some, *others])):
        for duration in durations:
            histogram.add(duration)
    one.merge(msgspec.json.decode(msgspec.json.encode(two), type=Histogram))
    assert one == both


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile(50) is None
    latency = latency_of(Histogram())
    assert (latency.count, latency.p50_ms, latency.max_ms) == (0, None, None)


# -- sets of letters and moments --------------------------------------------------------------------------


@given(st.sets(st.integers(0, 20_000)), st.sets(st.integers(0, 20_000)))
def test_bits_are_sets(some: set[int], others: set[int]) -> None:
    one, two = BitSet(), BitSet()
    for bits, numbers in ((one, some), (two, others)):
        for number in numbers:
            bits.add(number)
    assert (list(one), len(one)) == (sorted(some), len(some))
    assert list(BitSet(one.packed) | two) == sorted(some | others)
    assert list(one - two) == sorted(some - others)
    assert all(number in one for number in some) and 20_001 not in one


def ticks(*numbers: int) -> BitSet:
    bits = BitSet()
    for number in numbers:
        bits.add(number)
    return bits


@pytest.mark.parametrize(
    ("happened", "since", "gap"),
    [
        (ticks(1, 2, 50, 60), 3, 48),  # from the last one before
        (ticks(1, 40, 60), 40, 20),
        (ticks(10, 90, 95), 50, 80),
        (ticks(60, 61), 50, 10),  # nothing before: from the moment itself
        (ticks(1, 2), 50, 0),
    ],
)
def test_a_gap_lies_between_two_moments_of_which_the_later_is_after_the_kill(
    happened: BitSet, since: int, gap: int
) -> None:
    assert longest_gap_s(happened, since) == pytest.approx(gap * TICK_S)


# -- letters ----------------------------------------------------------------------------------------------


def plan(**fields: Any) -> Plan:
    options = Options(**fields)
    return Plan.of("redis://nowhere", options.config("bench"), options, origin_s=0.0)


@pytest.mark.parametrize("size", [32, 300, 5000])
def test_events_have_the_size_that_was_asked_for(size: int) -> None:
    made = plan(payload_bytes=size)
    assert {len(msgspec.json.encode(made.event(number))) for number in (0, 9, 10, 123_456_789)} == {size}


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_that_fails_is_the_one_that_was_asked_for(share: float) -> None:
    made = plan(fail_rate=share)
    assert sum(made.fails(number) for number in range(10_000)) == pytest.approx(10_000 * share, rel=0.1)


def test_all_processes_agree_on_the_letters() -> None:
    made = plan(fail_rate=0.3, seed=5, shards=8, concurrency=3)
    other = msgspec.json.decode(msgspec.json.encode(made), type=Plan)
    assert other == made and other.config() == made.config()
    assert other.config().redis_url is None, "the address is not part of the settings"
    numbers = random.Random(1).sample(range(10**6), 100)
    assert [made.fails(number) for number in numbers] == [other.fails(number) for number in numbers]
    assert [other.number_of(made.event_id(number)) for number in numbers] == numbers


def test_another_seed_gives_other_letters() -> None:
    some, others = plan(seed=1, fail_rate=0.5), plan(seed=2, fail_rate=0.5)
    assert some.event_id(5) != others.event_id(5)
    assert [some.fails(number) for number in range(100)] != [others.fails(number) for number in range(100)]


@pytest.mark.parametrize("fields", [{"kill_primary": True}, {"cluster": True, "redis_url": "redis://h"}])
def test_what_does_not_go_together_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--cluster"):
        Options(**fields)


def test_the_variables_count_where_no_option_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLQ_OPERATION_TIMEOUT", "1.5")
    assert Options().config("bench-1").lease_seconds == 5
    monkeypatch.setenv("DLQ_LEASE_SECONDS", "30")
    monkeypatch.setenv("DLQ_SPOOL_DIR", "/var/spool/somebodys")
    monkeypatch.setenv("DLQ_QUEUE", "somebodys")
    monkeypatch.setenv("DLQ_REDIS_URL", "redis://somewhere")
    config = Options().config("bench-1")
    assert (config.queue, config.operation_timeout, config.lease_seconds) == ("bench-1", 1.5, 30)
    assert config.spool_dir is None, "a spool would acknowledge what no server has"
    assert Options().given_url() == "redis://somewhere"
    assert Options(cluster=True).given_url() is None


# -- nodes ------------------------------------------------------------------------------------------------


def state(cpu_s: float | None, *, run: str = "a", role: str = "primary") -> NodeState:
    return NodeState("n", role, "valkey 9", run, cpu_s)


@pytest.mark.parametrize(
    ("states", "used"),
    [
        ([state(1.0), state(1.5)], 0.5),
        ([state(1.0), state(1.4), state(0.3, run="b")], 0.7),  # killed after the second look
        ([state(1.0), None, state(1.5)], 0.5),
        ([state(None), state(None)], None),
        ([None, state(2.0)], 0.0),
    ],
)
def test_the_cpu_of_a_node_is_counted_across_its_restart(states: list[NodeState | None], used: float | None) -> None:
    assert cpu_used_s(states) == (None if used is None else pytest.approx(used))


def test_letters_belong_to_the_node_that_captured_them() -> None:
    outage = Outage("a", 1, [0, 2], 0.0, 1.0, 2.0, {0: 30, 2: 10})
    found = letters_of_nodes([100, 100, 100, 100], ["a", "b", "a", "c"], ["d", "b", "d", "c"], outage)
    assert found == {"a": 40, "d": 160, "b": 100, "c": 100}


def test_a_node_that_is_away_at_the_end_says_so() -> None:
    [figures] = node_figures([{"n": state(1.0)}, {}], {"n": 7}, 2.0)
    assert (figures.role, figures.role_before, figures.letters, figures.cpu_seconds) == ("away", "primary", 7, 0.0)


def test_balance_and_rate_of_nothing_are_none() -> None:
    assert balance([0, 0]) is None and rate(5, 0.0) is None
    assert balance([30, 10, 20]) == 1.5 and rate(5, 2.0) == 2.5


# -- books ------------------------------------------------------------------------------------------------


def tally(
    *,
    acknowledged: BitSet | None = None,
    done: BitSet | None = None,
    producer_cpu_s: float = 1.0,
    worker_cpu_s: float = 1.0,
    captured_s: float = 10.0,
) -> Tally:
    """Two producers that saw the same, and one worker."""
    acked, ran = (bits or ticks(1, 2) for bits in (acknowledged, done))
    seen = ticks(1, 2).packed
    produced = Produced(
        acknowledged=acked.packed,
        calls=Histogram(),
        errors={"x": 2},
        ticks=seen,
        began_s=0.0,
        ended_s=captured_s,
        cpu_s=producer_cpu_s,
    )
    worked = Worked(
        runs=len(ran), done=ran.packed, waits=Histogram(), ticks=seen, began_s=0.5, ended_s=10.0, cpu_s=worker_cpu_s
    )
    return Tally([produced, produced], [worked])


def queue(*, resolved: int, open: int = 0, parked: int = 0, retried: int = 0) -> QueueStats:  # noqa: A002 - a state
    unused: dict[str, Any] = dict.fromkeys(QueueStats.__slots__, 0)
    totals = {"captured": 9, "resolved": resolved, "retried": retried}
    return QueueStats(**unused | {"totals": totals, "open": open, "parked": parked})


@pytest.mark.parametrize(
    ("stats", "done", "still_there", "lost"),
    [
        (queue(resolved=4), ticks(0, 1, 2, 3), ticks(), 0),
        (queue(resolved=2, open=2, parked=1), ticks(0, 1), ticks(2, 3), 0),
        (queue(resolved=3), ticks(0, 1, 2, 3), ticks(), 1),  # it ran, and the queue forgot it
        (queue(resolved=4), ticks(0, 1, 2, 9), ticks(), 1),  # 9, which nobody was told of, hides that 3 is gone
        (queue(resolved=3, open=1), ticks(0, 1, 2), ticks(9), 1),
    ],
)
def test_a_letter_is_lost_when_the_queue_or_the_handlers_miss_it(
    stats: QueueStats, done: BitSet, still_there: BitSet, lost: int
) -> None:
    books = books_of(tally(acknowledged=ticks(0, 1, 2, 3), done=done), stats, still_there)
    assert (books.acknowledged, books.lost) == (4, lost)


def test_runs_beyond_the_settled_attempts_are_duplicates() -> None:
    books = books_of(tally(done=ticks(0, 1, 2, 3, 4)), queue(resolved=2, retried=1), ticks())
    assert (books.runs, books.duplicates) == (5, 2)


# -- notes ------------------------------------------------------------------------------------------------


def setup(**fields: Any) -> Setup:
    unused: dict[str, Any] = dict.fromkeys(Setup.__slots__, 0) | {"kind": "given", "servers": ["valkey 9"]}
    return Setup(**unused | {"producers": 2, "cores": 8, "is_shared": True} | fields)


def notes(seen: Tally, where: Setup, *, failed_over: bool = False) -> list[str]:
    return notes_on(where, seen, process_figures(seen), [], failed_over=failed_over)


@pytest.mark.parametrize(
    ("told", "cores", "said"),
    [
        ({"producer_cpu_s": 9.5}, 8, "producers were the bound of the capture rate: 95% of a core"),
        ({"worker_cpu_s": 9.2, "captured_s": 5.0}, 8, "workers were the bound of the processing rate: 92% of a core"),
        ({"producer_cpu_s": 5.3, "worker_cpu_s": 8.0, "captured_s": 6.0}, 2, "this machine was the bound"),
        ({}, 8, "the workers kept up"),
    ],
)
def test_what_bounds_the_rates_is_told(told: dict[str, float], cores: int, said: str) -> None:
    assert said in notes(tally(**told), setup(cores=cores))[0]  # type: ignore[arg-type]  # numbers alone


def test_servers_elsewhere_are_not_bound_by_this_machine() -> None:
    seen = tally(producer_cpu_s=5.3, worker_cpu_s=8.0, captured_s=6.0)
    assert notes(seen, setup(cores=2, is_shared=False)) == []


def test_shards_too_few_for_the_primaries_are_told() -> None:
    [*_, note] = notes(tally(), setup(primaries=3, shards=4))
    assert note == "4 shards cannot be even on 3 primaries: try --shards 16"
    assert "shards" not in " ".join(notes(tally(), setup(primaries=3, shards=16)))


def test_rates_with_an_outage_say_so() -> None:
    assert notes(tally(), setup(), failed_over=True) == ["rates, percentiles and maxima include the outage"]


def test_of_a_run_that_was_too_short_nothing_else_is_told() -> None:
    seen = tally(producer_cpu_s=9.5)
    seen.captured_s = seen.last_start_s = 1.5
    assert notes(seen, setup()) == ["1.5 s are too short for rates to be trusted: say more --letters"]


def test_errors_of_all_producers_are_added_up() -> None:
    assert tally().errors == {"x": 4}
