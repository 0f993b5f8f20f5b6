"""How often a caller may ask."""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Rates"]

MOST_CALLERS: Final = 10_000
"""Callers that are remembered; the one that has been quiet for longest is forgotten, and may ask anew."""


class Rates:
    """A bucket for each caller: it holds `rate` requests, and as many come into it each second. 0: no bound."""

    def __init__(self, rate: float, *, ticks: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._most = max(rate, 1.0)
        self._ticks = ticks
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Caller → requests left, and when."""

    def wait_s(self, caller: str) -> float:
        """Take one request; return 0.0, or how long the caller has to wait for the next."""
        if not self._rate:
            return 0.0
        now = self._ticks()
        left, since = self._buckets.pop(caller, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left), now
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate
