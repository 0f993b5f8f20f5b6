"""Schedules of waits: growing, fixed, or listed, each with jitter if wanted. Checked when made, and frozen."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final

from uno.event_bus.dead_letter.rules import require

__all__ = ["MAX_DELAY_S", "DelayList", "ExponentialBackoff", "FixedDelay"]

MAX_DELAY_S: Final = 31_536_000.0
"""Longest wait that anything may ask for: a year. Longer ones are cut to it."""

DEFAULT_JITTER: Final = 0.1
"""Share of a wait that jitter may add."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_seconds(name: str, seconds: float) -> None:
    sound = _is_number(seconds) and 0 <= seconds <= MAX_DELAY_S
    require(sound, name, seconds, f"a number of seconds from 0 to {MAX_DELAY_S:.0f}")


def _require_retries(max_retries: int | None) -> None:
    sound = max_retries is None or (_is_number(max_retries) and isinstance(max_retries, int) and max_retries >= 0)
    require(sound, "max_retries", max_retries, "a whole number of retries from 0 upward, or None for no bound")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    """Jitter: a wait is made longer by up to ``jitter`` of itself, evenly distributed.

    Only longer: a dependency that asked for 60 s is never called after 57. Ten per cent spread the letters of
    one burst over 6 s after a minute and over 6 min after an hour, enough that they do not come back as one
    burst, while ``retry_delay=60`` still reads as about a minute.
    """

    jitter: float = 0.0
    """0 to 1: the largest addition, as a share of the wait."""
    rng: random.Random | None = field(default=None, repr=False, compare=False)
    """Source of randomness; None: the module `random`. Tests pass a seeded one."""

    def __post_init__(self) -> None:
        require(_is_number(self.jitter) and 0 <= self.jitter <= 1, "jitter", self.jitter, "a share from 0 to 1")

    def _spread(self, seconds: float) -> float:
        if not self.jitter:
            return float(seconds)
        draw = random.random() if self.rng is None else self.rng.random()
        return seconds * (1.0 + self.jitter * draw)


@dataclass(frozen=True, slots=True)
class ExponentialBackoff(_Spread):
    """Wait ``base × factorⁿ`` seconds, at most ``maximum``, plus up to ``jitter`` of that; the default policy.

    With the defaults the waits are 60, 120, 240, 480 and 960 s (31 min in all), each up to 10 % longer; then
    the letter is parked. ``maximum`` is never less than ``base``; jitter comes on top of it. However many
    failures, the answer is finite: from where the power passes ``maximum`` on, it is ``maximum``.
    Raises `ConfigError` on a value that is not allowed.
    """

    base: float = 60.0
    """First wait, seconds; 0 makes every wait 0."""
    factor: float = 2.0
    """Growth from one wait to the next, 1 to 100."""
    maximum: float = 3600.0
    """Longest wait before jitter, seconds."""
    max_retries: int | None = 5
    """Attempts by the queue; None for no bound, 0 for no waits at all."""
    jitter: float = field(default=DEFAULT_JITTER, kw_only=True)

    def __post_init__(self) -> None:
        _Spread.__post_init__(self)
        _require_seconds("base", self.base)
        _require_seconds("maximum", self.maximum)
        require(_is_number(self.factor) and 1 <= self.factor <= 100, "factor", self.factor, "a number from 1 to 100")
        _require_retries(self.max_retries)

    def delay(self, failures: int, /) -> float | None:
        """Return wait number ``failures``, None from ``max_retries`` on."""
        if self.max_retries is not None and failures >= self.max_retries:
            return None
        return self._spread(self._wait(failures))

    def first_delay(self) -> float | None:
        """Return about ``base`` seconds; None when ``max_retries`` is 0."""
        return self.delay(0)

    def _wait(self, failures: int) -> float:
        cap = max(self.base, self.maximum)
        if self.base == 0 or self.factor == 1:
            return self.base
        # Compared as logarithms: the power itself would overflow at about a thousand failures.
        if failures * log(self.factor) >= log(cap) - log(self.base):
            return cap
        return min(cap, self.base * self.factor**failures)


@dataclass(frozen=True, slots=True)
class FixedDelay(_Spread):
    """Wait the same number of seconds each time, exactly, unless ``jitter`` is given."""

    seconds: float
    max_retries: int | None = 5
    """Attempts by the queue; None for no bound, 0 for no waits at all."""

    def __post_init__(self) -> None:
        _Spread.__post_init__(self)
        _require_seconds("seconds", self.seconds)
        _require_retries(self.max_retries)

    def delay(self, failures: int, /) -> float | None:
        """Return the seconds, None from ``max_retries`` on."""
        if self.max_retries is not None and failures >= self.max_retries:
            return None
        return self._spread(self.seconds)

    def first_delay(self) -> float | None:
        """Return the seconds; None when ``max_retries`` is 0."""
        return self.delay(0)


@dataclass(frozen=True, slots=True)
class DelayList(_Spread):
    """Wait the seconds of the list, one entry an attempt, exactly, unless ``jitter`` is given.

    ``[10, 60, 300]``: three attempts, 10 s after the capture, 60 s after the first failure, 300 s after the
    second; the third failure parks. An empty list: no wait, one attempt at once.
    """

    delays: Sequence[float]

    def __post_init__(self) -> None:
        _Spread.__post_init__(self)
        object.__setattr__(self, "delays", tuple(self.delays))
        for position, seconds in enumerate(self.delays):
            _require_seconds(f"delays[{position}]", seconds)

    def delay(self, failures: int, /) -> float | None:
        """Return entry number ``failures``, from 0; None past the end."""
        return self._spread(self.delays[failures]) if failures < len(self.delays) else None

    def first_delay(self) -> float | None:
        """Return the first entry; None when the list is empty."""
        return self.delay(0)
