"""Retry policies and the decision after an attempt: numbers, bounds, and that nonsense harms nobody."""

import itertools
import logging
import math
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter.backoff import MAX_DELAY_S, DelayList, ExponentialBackoff, FixedDelay
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.decision import (
    RESOLVED,
    Decision,
    Discard,
    HandlerDecision,
    Park,
    RetryLater,
    decide,
)
from uno.event_bus.dead_letter.errors import ConfigError, InvalidEvent
from uno.event_bus.dead_letter.letter import Counters, Verb
from uno.event_bus.dead_letter.retry import (
    FALLBACK,
    CustomPolicy,
    PolicyByException,
    RetryPolicy,
    as_policy,
    from_config,
    policy_for,
)

NONSENSE: list[Any] = ["60", -1, math.nan, math.inf, -math.inf, True, [60], object(), 1j]

# A year is the bound of everything here; below a nanosecond, products of floats lose their last digits.
seconds = st.floats(min_value=1e-9, max_value=MAX_DELAY_S)


def waits(policy: RetryPolicy, limit: int = 100) -> list[float]:
    """All waits of a policy in their order, the capture's first."""

    def each() -> Iterator[float | None]:
        yield policy.first_delay()
        for failures in range(1, limit):
            yield policy.delay(failures)

    return [wait for wait in itertools.takewhile(lambda wait: wait is not None, each()) if wait is not None]


def after(error: BaseException | None, **changes: Any) -> Decision:
    """The decision about a letter that was captured ten seconds ago and has never failed since."""
    arguments: dict[str, Any] = {
        "counters": Counters(),
        "captured_at_ms": 1_000_000,
        "now_ms": 1_010_000,
        "policy": FixedDelay(60, max_retries=5),
    }
    return decide(error, **(arguments | changes))


# --- policies --------------------------------------------------------------------------------------------


def test_default_policy_waits_the_guides_minute_and_doubles() -> None:
    """`retry_delay=60` reads as: the first retry after about a minute."""
    policy = from_config(DeadLetterConfig())
    for wait, base in zip(waits(policy), [60, 120, 240, 480, 960], strict=True):
        assert base <= wait <= base * 1.1


def test_max_retries_is_the_number_of_attempts_by_the_queue() -> None:
    """With five retries, failures 1 to 4 are retried and failure 5 parks."""
    policy = from_config(DeadLetterConfig(max_retries=5))
    assert all(policy.delay(failures) is not None for failures in range(1, 5))
    assert policy.delay(5) is None
    assert policy.delay(6) is None


def test_without_retries_there_are_no_waits() -> None:
    """`max_retries=0`: nothing to wait for after the capture, and the first failure parks."""
    policy = from_config(DeadLetterConfig(max_retries=0))
    assert (policy.first_delay(), policy.delay(1)) == (None, None)


def test_settings_shape_the_default_policy() -> None:
    """Delay, cap and bound come from the config; the cap is never below the first delay."""
    policy = from_config(DeadLetterConfig(retry_delay=10, retry_max_delay=25, max_retries=4), rng=random.Random(1))
    assert [round(wait, -1) for wait in waits(policy)] == pytest.approx([10, 20, 25, 25], abs=5)
    slow = from_config(DeadLetterConfig(retry_delay=7200))
    assert all(7200 <= wait <= 7920 for wait in waits(slow))


def test_jitter_is_deterministic_with_a_seeded_source() -> None:
    """Tests and simulations can repeat the waits."""
    first, second = (waits(ExponentialBackoff(rng=random.Random(7))) for _ in range(2))
    assert first == second
    assert first != waits(ExponentialBackoff(rng=random.Random(8)))


def test_jitter_spreads_the_letters_of_a_burst() -> None:
    """A thousand letters captured at once come back spread evenly over six seconds, none early."""
    policy = ExponentialBackoff(rng=random.Random(1))
    found = [wait for _ in range(1000) if (wait := policy.first_delay()) is not None]
    per_second = [sum(second <= wait < second + 1 for wait in found) for second in range(60, 66)]
    assert sum(per_second) == 1000
    assert min(per_second) > 120


@given(seconds, st.floats(1, 100), seconds, st.floats(0, 1), st.integers(0, 10_000))
def test_exponential_waits_stay_within_their_bounds(
    base: float, factor: float, maximum: float, jitter: float, failures: int
) -> None:
    """No wait is shorter than the base, or longer than cap plus jitter; none overflows."""
    policy = ExponentialBackoff(base, factor, maximum, max_retries=None, jitter=jitter)
    wait = policy.delay(failures)
    assert wait is not None
    assert math.isfinite(wait)
    assert base <= wait <= max(base, maximum) * (1 + jitter)


@given(seconds, st.floats(1, 100), seconds)
def test_exponential_waits_never_shrink(base: float, factor: float, maximum: float) -> None:
    """Without jitter each wait is at least as long as the one before."""
    policy = ExponentialBackoff(base, factor, maximum, max_retries=None, jitter=0)
    found = waits(policy, 60)
    assert found == sorted(found)
    assert found[0] == base
    if factor > 1.001:
        assert policy.delay(10**9) == max(base, maximum)


@given(st.floats(0, MAX_DELAY_S), st.floats(1, 100), st.floats(0, MAX_DELAY_S))
def test_exponential_takes_all_that_its_bounds_allow(base: float, factor: float, maximum: float) -> None:
    """Zeros, subnormal numbers and a year: every answer is a finite wait."""
    policy = ExponentialBackoff(base, factor, maximum, max_retries=None)
    for failures in (0, 1, 2, 1000, 10_000, 10**300):
        wait = policy.delay(failures)
        assert wait is not None
        assert 0 <= wait <= MAX_DELAY_S * 1.1


def test_a_base_of_zero_retries_at_once() -> None:
    """`DLQ_RETRY_DELAY=0` is allowed, and means what it says."""
    assert waits(ExponentialBackoff(0)) == [0] * 5


def test_fixed_delay_is_exact() -> None:
    """What is written is what happens, unless jitter is asked for."""
    assert waits(FixedDelay(30, max_retries=3)) == [30, 30, 30]
    assert waits(FixedDelay(30, None), 50) == [30] * 50
    assert all(30 <= wait <= 45 for wait in waits(FixedDelay(30, jitter=0.5)))


def test_delay_list_has_one_entry_an_attempt() -> None:
    """Three entries are three attempts; the third failure parks."""
    policy = DelayList([10, 60, 300])
    assert waits(policy) == [10, 60, 300]
    assert policy.delay(3) is None
    assert policy.delay(10**6) is None
    assert DelayList([]).first_delay() is None


@given(st.lists(st.floats(0, MAX_DELAY_S), max_size=20))
def test_any_list_of_delays_is_waited_as_it_is(delays: list[float]) -> None:
    """The waits of a list are the list."""
    assert waits(as_policy(delays)) == delays


def test_callable_is_asked_for_the_attempt_that_comes_next() -> None:
    """1 at the capture, n + 1 after failure n; None parks."""
    asked: list[int] = []

    def policy(attempt: int) -> float | None:
        asked.append(attempt)
        return attempt * 10 if attempt <= 3 else None

    assert waits(as_policy(policy)) == [10, 20, 30]
    assert asked == [1, 2, 3, 4]


def test_a_list_and_a_callable_over_it_agree() -> None:
    """The two ways to write down the same waits mean the same."""
    delays = [5.0, 50.0, 500.0]
    assert waits(as_policy(lambda n: delays[n - 1] if n <= 3 else None)) == waits(as_policy(delays))


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: type(answer).__name__)
def test_nonsense_from_a_callable_gives_the_default_schedule(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A worker goes on, the letter is retried and parked as by default, and the log says so."""
    policy = as_policy(lambda _: answer)
    with caplog.at_level(logging.WARNING, logger="uno"):
        found = waits(policy)
    assert [round(wait / 60) for wait in found[:2]] == [1, 2]
    assert len(found) == 5
    assert len(caplog.records) == 1, "reported, but not for every letter"
    assert "default schedule" in caplog.text


def test_callable_that_raises_gives_the_default_schedule(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the policy's is not an error of the worker's."""

    def broken(attempt: int) -> float:
        raise KeyError(attempt)

    assert len(waits(as_policy(broken))) == 5
    assert "broken" in caplog.text
    assert "KeyError" in caplog.text


def test_interrupt_in_a_callable_passes() -> None:
    """Only errors are caught: Ctrl-C still stops the process."""

    def interrupted(attempt: int) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        as_policy(interrupted).delay(1)


def test_longest_wait_of_a_callable_is_a_year() -> None:
    """A wait past the end of time is cut, so that due times stay numbers that Redis can hold."""
    assert as_policy(lambda _: 10**400).delay(1) == MAX_DELAY_S


def test_policy_object_is_used_and_kept_from_doing_harm(caplog: pytest.LogCaptureFixture) -> None:
    """Any object with the two methods is a policy; its errors end in the default schedule."""

    class Mine:
        def delay(self, failures: int, /) -> float | None:
            if failures == 2:
                raise RuntimeError
            return failures * 100.0

        def first_delay(self) -> float | None:
            return 7

    policy = as_policy(Mine())
    assert (policy.first_delay(), policy.delay(1), policy.delay(3)) == (7, 100, 300)
    assert 240 <= (policy.delay(2) or 0) <= 264
    assert "Mine" in caplog.text


@pytest.mark.parametrize("value", [60, 1.5, [1, 2], (), None, lambda _: 1, FixedDelay(1), PolicyByException({})])
def test_what_can_be_a_policy(value: Any) -> None:
    """Numbers, sequences, callables, None and policies."""
    policy = as_policy(value)
    assert isinstance(policy, RetryPolicy)
    assert as_policy(policy) is policy


async def _async_policy(attempt: int) -> float:
    return attempt


@pytest.mark.parametrize(
    "value",
    ["60", b"60", True, -1, math.nan, math.inf, 10**400, [1, -1], [1, "2"], object(), FixedDelay, int, _async_policy],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_a_policy_is_refused_in_one_line(value: Any) -> None:
    """The error names the value and what is allowed, where the policy is set, not when a letter fails."""
    with pytest.raises(ConfigError, match="allowed is") as caught:
        as_policy(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"base": -1},
        {"base": math.nan},
        {"factor": 0.5},
        {"factor": math.nan},
        {"maximum": math.inf},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_retries": True},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"jitter": "0.1"},
    ],
    ids=repr,
)
def test_bad_arguments_of_a_policy_are_refused(arguments: dict[str, Any]) -> None:
    """Each is named with its value."""
    with pytest.raises(ConfigError, match=rf"^{next(iter(arguments))} is .*allowed is"):
        ExponentialBackoff(**arguments)


def test_most_specific_class_wins() -> None:
    """The order of the mapping does not matter; the order of the classes does."""
    policy = PolicyByException({Exception: 1, OSError: 2, ConnectionError: 3, ValueError: None}, default=9)
    expected = {ConnectionResetError: 3, TimeoutError: 2, KeyError: 1, KeyboardInterrupt: 9, UnicodeError: None}
    for kind, wait in expected.items():
        assert policy_for(policy, kind("…")).delay(1) == wait
    assert policy_for(policy, None).first_delay() == 9
    assert (policy.delay(1), policy.first_delay()) == (9, 9)


def test_policies_by_exception_may_be_nested() -> None:
    """A policy by exception may stand inside another."""
    inner = PolicyByException({BrokenPipeError: 1}, default=2)
    policy = PolicyByException({OSError: inner})
    assert policy_for(policy, BrokenPipeError()).delay(1) == 1
    assert policy_for(policy, FileNotFoundError()).delay(1) == 2
    assert policy_for(policy, ValueError()) is FALLBACK


def test_keys_of_a_policy_by_exception_are_exception_classes() -> None:
    """A name, or an instance, is refused where it is written."""
    for key in ("ValueError", ValueError(), int):
        with pytest.raises(ConfigError, match="exception class"):
            PolicyByException({key: 1})  # type: ignore[dict-item]


# --- what a handler raises -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_retry_later_refuses_impossible_waits(value: float) -> None:
    """The handler's mistake is an error in the handler, which then follows the policy."""
    with pytest.raises(ValueError, match="RetryLater"):
        RetryLater(value)


@pytest.mark.parametrize("value", ["5", None, True, [5]])
def test_retry_later_refuses_what_is_no_number(value: Any) -> None:
    """Text is no number of seconds."""
    with pytest.raises(TypeError, match="RetryLater"):
        RetryLater(value)


def test_handler_decisions_say_why() -> None:
    """Their text is the reason, or a default."""
    assert str(Park("card expired")) == "card expired"
    assert str(Discard()) == "discarded by its handler"
    assert str(RetryLater(5)) == "try again in 5 s"


@pytest.mark.parametrize("decision", [RetryLater(5), RetryLater(seconds=5, why="busy"), Park("p"), Discard()], ids=repr)
def test_handler_decisions_cross_processes(decision: HandlerDecision) -> None:
    """A handler may work in a process pool, and decide there."""
    again = pickle.loads(pickle.dumps(decision))
    assert (type(again), vars(again), str(again)) == (type(decision), vars(decision), str(decision))


# --- decide ----------------------------------------------------------------------------------------------


def test_returning_resolves() -> None:
    """No error, no counters, nothing to explain."""
    assert after(None) is RESOLVED
    assert RESOLVED.verb == Verb.RESOLVE


def test_failure_is_retried_by_the_policy_and_counted() -> None:
    """A first failure waits as the policy says."""
    decision = after(ValueError("boom"))
    assert decision == Decision(Verb.RETRY, 60, "handler_failed", "failure 1", failed=True)


@pytest.mark.parametrize("failures", range(8))
def test_last_failure_parks(failures: int) -> None:
    """Counters are those from before the attempt: four failures and this one make five."""
    decision = after(ValueError(), counters=Counters(failures=failures))
    assert decision.verb == (Verb.RETRY if failures < 4 else Verb.PARK)
    assert decision.failed
    assert decision.reason == "handler_failed"


def test_retries_are_counted_from_the_last_redrive() -> None:
    """A redriven letter has all its retries again; crashes and releases are not failures."""
    counters = Counters(failures=9, failures_at_redrive=9, redrives=1, crashes=2, releases=50)
    assert after(ValueError(), counters=counters).verb == Verb.RETRY
    assert after(ValueError(), counters=counters._replace(failures=13)).verb == Verb.PARK


def test_timeout_is_retried_with_its_own_reason() -> None:
    """Our timeout is TIMEOUT; a TimeoutError of the handler's own is a failure like others."""
    assert after(TimeoutError(), timed_out=True).reason == "timeout"
    assert after(TimeoutError(), timed_out=True, counters=Counters(failures=4)).verb == Verb.PARK
    assert after(TimeoutError()).reason == "handler_failed"


def test_event_that_cannot_be_decoded_is_parked_without_a_failure() -> None:
    """No handler ran, and time does not heal bytes."""
    error = InvalidEvent("Order", "Expected `int`, got `str`", field="n")
    decision = after(error, decoding=True)
    assert (decision.verb, decision.reason, decision.failed) == (Verb.PARK, "invalid_event", False)
    assert "at n" in decision.why


def test_invalid_event_out_of_a_handler_is_a_failure() -> None:
    """A handler that itself captures something bad has failed; its own letter is sound."""
    assert after(InvalidEvent("Order", "…")).verb == Verb.RETRY


def test_retry_later_is_a_wish_and_not_a_failure() -> None:
    """It counts nothing, however often the letter has failed, and gives no reason."""
    decision = after(RetryLater(90, "rate limit"), counters=Counters(failures=100))
    assert decision == Decision(Verb.RETRY, 90, "", "rate limit", failed=False)


def test_retry_later_waits_a_second_at_least() -> None:
    """A handler that always asks for now does not spin."""
    assert after(RetryLater(0)).delay_s == 1
    assert after(RetryLater(10**400)).delay_s == MAX_DELAY_S


def test_park_and_discard_are_done_as_asked() -> None:
    """The handler's word beats the policy's."""
    assert after(Park("fraud")) == Decision(Verb.PARK, 0, "handler_failed", "fraud", failed=True)
    assert after(Discard("test order")) == Decision(Verb.DISCARD, 0, "", "test order", failed=False)


def test_no_retry_is_scheduled_past_retry_for() -> None:
    """Ten seconds after the capture, 60 s more fit into 70 s but not into 69."""
    assert after(ValueError(), retry_for=70).verb == Verb.RETRY
    for error in (ValueError(), RetryLater(60)):
        decision = after(error, retry_for=69)
        assert decision.verb == Verb.PARK
        assert "retry_for" in decision.why
    assert after(ValueError(), retry_for=0.001).failed
    assert not after(RetryLater(60), retry_for=0.001).failed


def test_retry_for_does_not_bind_a_redriven_letter() -> None:
    """An operator sent it back long after: it gets its retries."""
    assert after(ValueError(), retry_for=1, counters=Counters(redrives=1)).verb == Verb.RETRY


def test_clock_that_runs_behind_the_server_harms_nothing() -> None:
    """A capture in the future leaves the more time."""
    assert after(ValueError(), now_ms=0, retry_for=60).verb == Verb.RETRY


def test_single_error_in_groups_counts_as_itself() -> None:
    """Task groups wrap what their tasks raise; a decision inside one is still a decision."""
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [Discard("no")])])
    assert after(group).verb == Verb.DISCARD
    policy = PolicyByException({OSError: 5}, default=50)
    assert after(ExceptionGroup("g", [OSError()]), policy=policy).delay_s == 5
    assert after(ExceptionGroup("g", [OSError(), OSError()]), policy=policy).delay_s == 50
    assert after(ExceptionGroup("g", [Discard(), OSError()])).verb == Verb.RETRY


def test_policy_is_chosen_by_the_error() -> None:
    """Per exception type, also None for park at once."""
    policy = PolicyByException({ValueError: None})
    assert after(ValueError(), policy=policy).verb == Verb.PARK
    assert after(KeyError(), policy=policy).verb == Verb.RETRY


def test_unknown_handler_decision_follows_the_policy() -> None:
    """A subclass that says nothing we know is a failure, also one that hides its facts."""

    class Silent(RetryLater):
        def __init__(self) -> None:
            Exception.__init__(self)

    class Hostile(RetryLater):
        seconds = math.nan

        @property
        def why(self) -> str:  # type: ignore[override]
            raise RuntimeError

        def __init__(self) -> None:
            Exception.__init__(self)

    for error in (HandlerDecision("hm"), Silent(), Hostile()):
        assert after(error).verb == Verb.RETRY
        assert after(error).failed


def test_bare_policy_that_breaks_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Even a policy that did not come through `as_policy` cannot raise into the worker."""

    class Broken(CustomPolicy):
        def delay(self, failures: int, /) -> float | None:
            raise RuntimeError

    decision = after(ValueError(), policy=Broken(lambda _: 1))
    assert 120 <= decision.delay_s <= 132
    assert "Broken" in caplog.text


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.floats(0.001, 10**9)),
    st.booleans(),
    st.sampled_from([ValueError("x"), RetryLater(3), Park("p"), Discard("d"), KeyboardInterrupt(), SystemExit(1)]),
)
def test_every_decision_is_one_that_can_be_performed(
    failures: int, at_redrive: int, retry_for: float | None, timed_out: bool, error: BaseException
) -> None:
    """Whatever the counters, a retry has a finite wait, and everything that ends a letter says why."""
    decision = after(
        error, counters=Counters(failures, failures_at_redrive=at_redrive), retry_for=retry_for, timed_out=timed_out
    )
    assert 0 <= decision.delay_s <= MAX_DELAY_S * 1.1
    assert decision.why
    assert decision.reason in {"", "timeout", "handler_failed"}
    assert (decision.verb == Verb.RETRY) or decision.delay_s == 0
