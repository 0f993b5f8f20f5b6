"""What becomes of a letter after an attempt: what a handler may ask for, and the decision as a value.

`decide` turns how an attempt ended into a `Decision`, which the worker then settles; it performs nothing.
"""

import logging
from math import inf
from typing import Final, NamedTuple, override

from uno.event_bus.dead_letter.backoff import MAX_DELAY_S
from uno.event_bus.dead_letter.failure import sole_error
from uno.event_bus.dead_letter.letter import Counters, DeadLetterReason, Verb
from uno.event_bus.dead_letter.retry import FALLBACK, RetryPolicy, line_of, policy_for, sound

__all__ = ["RESOLVED", "Decision", "Discard", "HandlerDecision", "Park", "RetryLater", "decide"]

logger = logging.getLogger(__name__)

MIN_RETRY_LATER_S: Final = 1.0
"""Shortest wait that `RetryLater` gets, so that a handler that asks for it always makes one attempt a second."""

WHY_LENGTH: Final = 500
"""Longest reason of a handler's that a decision keeps, characters."""

TIME_IS_UP: Final = "the next retry would be later than retry_for after the capture"


class HandlerDecision(Exception):
    """Base of what a handler raises to decide the letter's fate itself, instead of the policy."""


class RetryLater(HandlerDecision):
    """Raised by a handler to be tried again in this many seconds.

    It is a wish, not a failure: neither the failures nor the crashes of the letter grow, so ``max_retries``
    does not end it; ``retry_for`` does. Waits under 1 s become 1 s, waits over a year become a year.
    Raises ValueError for a number that is negative or not finite, TypeError for anything but a number.
    """

    def __init__(self, seconds: float, why: str = "") -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"RetryLater takes seconds as a number, not {type(seconds).__name__}")
        if not 0 <= seconds < inf:
            raise ValueError(f"RetryLater takes seconds from 0 upward, not {seconds!r}")
        self.seconds = float(min(seconds, MAX_DELAY_S))
        self.why = str(why)
        super().__init__(self.seconds, self.why)  # the arguments again, so that it can be pickled

    @override
    def __str__(self) -> str:
        return self.why or f"try again in {self.seconds:g} s"


class Park(HandlerDecision):
    """Raised by a handler to park the letter now: it stays, whole, until an operator acts. Counts as a failure."""

    def __init__(self, why: str = "") -> None:
        self.why = str(why) or "parked by its handler"
        super().__init__(self.why)


class Discard(HandlerDecision):
    """Raised by a handler to end the letter without success; the reason is counted and audited."""

    def __init__(self, why: str = "") -> None:
        self.why = str(why) or "discarded by its handler"
        super().__init__(self.why)


class Decision(NamedTuple):
    """What is to become of a letter after an attempt; made by `decide`, performed by the worker's settler."""

    verb: Verb
    delay_s: float = 0.0
    """Seconds until it is due again, for RETRY."""
    reason: str = ""
    """A `DeadLetterReason`, for RETRY and PARK; empty when the handler asked for it without failing."""
    why: str = ""
    """For people: what decided. Empty for RESOLVE."""
    failed: bool = False
    """Count a failure: a handler ran and failed."""


RESOLVED: Final = Decision(Verb.RESOLVE)
"""The decision after a handler that returned."""


def decide(
    error: BaseException | None,
    *,
    counters: Counters,
    captured_at_ms: int,
    now_ms: int,
    policy: RetryPolicy,
    retry_for: float | None = None,
    timed_out: bool = False,
    decoding: bool = False,
) -> Decision:
    """Return what is to become of a letter whose attempt ended with this error, None when the handler returned.

    Args:
        error: What the handler raised. A group that holds one single error counts as that error, since task
            groups wrap what their tasks raise.
        counters: As they were when the attempt began: this failure is not in them yet.
        captured_at_ms: Unix time of the capture, ms, by the server's clock (`Letter.captured_at_ms`).
        now_ms: Unix time now, ms, by the server's clock as well as this process knows it.
        policy: What `as_policy` or `from_config` made.
        retry_for: Seconds after the capture beyond which no retry is scheduled: the letter is parked instead.
            A letter that was redriven is past it by nature, so then only the policy counts.
        timed_out: The attempt was cancelled by the handler's own timeout; retried by the policy, as TIMEOUT.
        decoding: The error arose before the handler ran, from the letter's bytes. Time cannot heal them, so
            the letter is parked as INVALID_EVENT, without a failure counted.

    Never raises.
    """
    if error is None:
        return RESOLVED
    error = sole_error(error)
    if decoding:
        return Decision(Verb.PARK, 0.0, DeadLetterReason.INVALID_EVENT, line_of(error))
    left_s = _time_left_s(counters, captured_at_ms, now_ms, retry_for)
    if isinstance(error, HandlerDecision) and not timed_out:
        asked = _as_asked(error, left_s)
        if asked is not None:
            return asked
    reason = DeadLetterReason.TIMEOUT if timed_out else DeadLetterReason.HANDLER_FAILED
    return _by_policy(policy_for(policy, error), counters.failures_since_redrive + 1, reason, left_s)


def _time_left_s(counters: Counters, captured_at_ms: int, now_ms: int, retry_for: float | None) -> float:
    """Return the seconds within which a retry may be scheduled; infinite without a bound or after a redrive."""
    if retry_for is None or counters.redrives:
        return inf
    return retry_for - (now_ms - captured_at_ms) / 1000


def _as_asked(error: HandlerDecision, left_s: float) -> Decision | None:
    """Return what the handler asked for; None when it cannot be made out, as of a subclass without its facts."""
    why = _why(error)
    match error:
        case Park():
            return Decision(Verb.PARK, 0.0, DeadLetterReason.HANDLER_FAILED, why, failed=True)
        case Discard():
            return Decision(Verb.DISCARD, 0.0, "", why)
        case RetryLater(seconds=int() | float() as seconds) if seconds >= 0:
            delay_s = float(min(max(seconds, MIN_RETRY_LATER_S), MAX_DELAY_S))
            if delay_s > left_s:
                return Decision(Verb.PARK, 0.0, DeadLetterReason.HANDLER_FAILED, TIME_IS_UP)
            return Decision(Verb.RETRY, delay_s, "", why or "asked for by its handler")
    return None


def _why(error: HandlerDecision) -> str:
    try:
        return str(getattr(error, "why", ""))[:WHY_LENGTH].encode("utf-8", "replace").decode()
    except Exception:  # a subclass of the application's
        return ""


def _by_policy(policy: RetryPolicy, failures: int, reason: DeadLetterReason, left_s: float) -> Decision:
    """Return what the policy makes of this many failures."""
    try:
        delay_s = sound(policy.delay(failures))
    except Exception as error:  # a policy that did not come through `as_policy`
        logger.warning("%s failed, the default schedule answers instead: %s", type(policy).__name__, line_of(error))
        delay_s = FALLBACK.delay(failures)
    if delay_s is None:
        why = f"the retry policy ends at failure {failures}"
        return Decision(Verb.PARK, 0.0, reason, why, failed=True)
    if delay_s > left_s:
        return Decision(Verb.PARK, 0.0, reason, TIME_IS_UP, failed=True)
    return Decision(Verb.RETRY, delay_s, reason, f"failure {failures}", failed=True)
