"""When a letter is tried again: policies.

The capture itself is attempt 0, made by the caller. A letter's waits are numbered by the failures that the queue
has seen since the last redrive, n = 0 at the capture::

    capture ── wait 0 ── attempt 1 ✗ ── wait 1 ── attempt 2 ✗ ── wait 2 ── … attempt max_retries ✗ ── parked

A `RetryPolicy` gives these waits, in seconds: `first_delay()` is wait 0, `delay(n)` wait n; None means that no
attempt follows (at the capture, where nothing can be parked yet: that the letter is due at once, and its first
failure parks). With ``max_retries=5`` that is five attempts by the queue: `delay(1)` to `delay(4)` give seconds,
`delay(5)` gives None.

A policy of the caller's that raises or answers nonsense stops no worker and loses no letter: the default
schedule (`FALLBACK`) is used for that letter instead, and a warning goes to the log.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast, override, runtime_checkable

from uno.event_bus.dead_letter.backoff import MAX_DELAY_S, DelayList, ExponentialBackoff, FixedDelay
from uno.event_bus.dead_letter.rules import require

if TYPE_CHECKING:
    from uno.event_bus.dead_letter.config import DeadLetterConfig

__all__ = [
    "FALLBACK",
    "CustomPolicy",
    "PolicyByException",
    "PolicyLike",
    "RetryPolicy",
    "as_policy",
    "from_config",
    "line_of",
    "most_attempts",
    "policy_for",
    "sound",
]

logger = logging.getLogger(__name__)

WARNING_INTERVAL_S: Final = 1.0
"""A policy that fails is reported at most this often, seconds: it may fail for every letter of a backlog."""

LINE_LENGTH: Final = 200
"""Longest error that a decision or a log line quotes, characters."""


@runtime_checkable
class RetryPolicy(Protocol):
    """How long a letter waits. Implementations are shared by handlers and threads: keep no state per letter."""

    def delay(self, failures: int, /) -> float | None:
        """Return the seconds to wait after this many failures since the last redrive, from 1; None to park."""

    def first_delay(self) -> float | None:
        """Return the seconds to wait after the capture; None if there is no wait: due at once, then parked."""


class CustomPolicy:
    """A callable ``attempt -> seconds | None`` as a policy; it alone decides, no ``max_retries`` beside it.

    ``attempt`` is the attempt that the wait comes before, from 1, as the handler of a letter that was never
    redriven sees it in ``letter.attempt``: the callable is asked for 1 at the capture and for n + 1 after the
    n-th failure. None parks. When it raises, or answers anything but a finite number ≥ 0 or None, `FALLBACK`
    answers instead and a warning is logged, at most one a second.
    """

    def __init__(self, ask: Callable[[int], float | None]) -> None:
        self.ask = ask
        self._warned_at = -WARNING_INTERVAL_S

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self.ask, '__qualname__', type(self.ask).__name__)})"

    def delay(self, failures: int, /) -> float | None:
        """Return what the callable answers for attempt ``failures + 1``."""
        try:
            return sound(self.ask(failures + 1))
        except Exception as error:  # the caller's code: whatever it raises must not stop a worker
            self._warn(error)
            return FALLBACK.delay(failures)

    def first_delay(self) -> float | None:
        """Return what the callable answers for attempt 1."""
        return self.delay(0)

    def _warn(self, error: Exception) -> None:
        now = monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            logger.warning("%r failed, the default schedule answers instead: %s", self, line_of(error))


class _Guarded(CustomPolicy):
    """A policy object of the caller's, kept from doing harm in the same way."""

    def __init__(self, policy: RetryPolicy) -> None:
        super().__init__(lambda attempt: policy.delay(attempt - 1) if attempt > 1 else policy.first_delay())
        self.policy = policy

    @override
    def __repr__(self) -> str:
        return f"{type(self.policy).__name__} object"


def sound(answer: object) -> float | None:
    """Return a policy's answer as it may be used; TypeError or ValueError when it makes no sense."""
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise TypeError(f"a retry policy answers seconds or None, not {type(answer).__name__}")
    if not 0 <= answer < inf:
        raise ValueError(f"a retry policy answers seconds from 0 upward or None, not {answer!r}")
    return float(min(answer, MAX_DELAY_S))


FALLBACK: Final = ExponentialBackoff()
"""What answers for a policy that failed to: 60, 120, 240, 480 and 960 s, then parked."""

type PolicyLike = RetryPolicy | Callable[[int], float | None] | Sequence[float] | float | None
"""What `as_policy` takes."""


class PolicyByException:
    """A policy by the class of the error: the most specific class wins, by the error's method resolution order.

    ``PolicyByException({ConnectionError: 5, ValueError: None})``: connection errors wait 5 s each time, value
    errors park at once, all others follow ``default``. Failures are counted over all errors, so five retries
    are five, whichever policies gave them.
    """

    def __init__(self, policies: Mapping[type[BaseException], PolicyLike], default: PolicyLike = FALLBACK) -> None:
        for kind in policies:
            is_error = isinstance(kind, type) and issubclass(kind, BaseException)
            require(is_error, "a key of PolicyByException", kind, "an exception class")
        self.policies = {kind: as_policy(policy) for kind, policy in policies.items()}
        self.default = as_policy(default)

    def __repr__(self) -> str:
        inner = ", ".join(f"{kind.__name__}: {policy!r}" for kind, policy in self.policies.items())
        return f"PolicyByException({{{inner}}}, default={self.default!r})"

    def for_error(self, error: BaseException | None) -> RetryPolicy:
        """Return the policy for this error's class; the default when there is none, or no error."""
        for kind in type(error).__mro__:
            if kind in self.policies:
                return self.policies[kind]
        return self.default

    def delay(self, failures: int, /) -> float | None:
        """Return what the default answers; `policy_for` picks by the error first."""
        return self.default.delay(failures)

    def first_delay(self) -> float | None:
        """Return what the default answers; `policy_for` picks by the error first."""
        return self.default.first_delay()


def as_policy(value: PolicyLike, *, max_retries: int | None = 5) -> RetryPolicy:
    """Return the value as a policy that never raises when it is asked.

    A number is a `FixedDelay` of that many seconds with ``max_retries``; a sequence of numbers a `DelayList`;
    a callable a `CustomPolicy`; None parks at the first failure; a `RetryPolicy`
    stays what it is. Raises `ConfigError` for anything else, and for delays that are negative or not finite.
    """
    if isinstance(value, ExponentialBackoff | FixedDelay | DelayList | CustomPolicy | PolicyByException):
        return value
    if value is None:
        return DelayList(())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FixedDelay(value, max_retries)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return DelayList(value)
    if isinstance(value, RetryPolicy) and not isinstance(value, type):
        return _Guarded(value)
    require(
        callable(value) and not isinstance(value, type) and not iscoroutinefunction(value),
        "a retry policy",
        value,
        "seconds, a list of seconds, a callable attempt -> seconds | None that is not async, None, or an "
        "object with delay(failures) and first_delay()",
    )
    return CustomPolicy(cast("Callable[[int], float | None]", value))


def from_config(config: "DeadLetterConfig", *, rng: random.Random | None = None) -> ExponentialBackoff:
    """Return the default policy of these settings: exponential from ``retry_delay``, capped and jittered."""
    return ExponentialBackoff(
        base=config.retry_delay,
        maximum=config.retry_max_delay,
        max_retries=config.max_retries,
        rng=rng,
    )


def policy_for(policy: RetryPolicy, error: BaseException | None) -> RetryPolicy:
    """Return the policy that answers for this error: what a `PolicyByException` picks, else the policy itself."""
    while isinstance(policy, PolicyByException):
        policy = policy.for_error(error)
    return policy


def most_attempts(policy: RetryPolicy) -> int | None:
    """Return how many attempts a policy allows from a redrive on; None when it has no bound, or does not tell."""
    policy = policy_for(policy, None)
    if isinstance(policy, DelayList):
        return max(1, len(policy.delays))
    if isinstance(policy, ExponentialBackoff | FixedDelay) and policy.max_retries is not None:
        return max(1, policy.max_retries)
    return None


def line_of(error: BaseException) -> str:
    """Return the error as one short line, whatever its ``__str__`` does."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # an error that cannot even be printed
        text = type(error).__name__
    return " ".join(text[:LINE_LENGTH].split())
