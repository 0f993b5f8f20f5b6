"""Histograms of durations: fixed buckets, so that those of several processes add up.

A bucket's edge is 2^(1/16) times the one before, from 1 µs on: 512 of them reach 71 minutes, and a percentile is at
most 4.5 % too high, never too low. The maximum is exact.
"""

from math import ceil, log2
from typing import Final, Self

import msgspec

__all__ = ["Histogram"]

FIRST_S: Final = 1e-6
PER_OCTAVE: Final = 16
BUCKETS: Final = 512


class Histogram(msgspec.Struct):
    """Durations, seconds: how many fell into each bucket, and the longest."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    longest_s: float = 0.0

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    def add(self, duration_s: float) -> None:
        """Take in a duration; one below 1 µs (two clocks may differ by that) counts as 1 µs."""
        place = ceil(log2(duration_s / FIRST_S) * PER_OCTAVE) if duration_s > FIRST_S else 0
        self.counts[min(place, BUCKETS - 1)] += 1
        self.longest_s = max(self.longest_s, duration_s)

    def merge(self, other: Self) -> None:
        """Take in all durations of another one."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.longest_s = max(self.longest_s, other.longest_s)

    def percentile(self, percent: float) -> float | None:
        """Return the duration, seconds, that so many percent do not exceed: its bucket's edge; None of nothing."""
        wanted = self.count * percent / 100
        if not wanted:
            return None
        seen = 0
        for place, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return min(FIRST_S * 2 ** (place / PER_OCTAVE), self.longest_s)
        return self.longest_s
