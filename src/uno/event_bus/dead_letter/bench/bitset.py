"""Sets of small numbers as bits: which letters were acknowledged, in which hundredths of a second something happened.

A million letters are 125 KB, and the sets of several processes add up with one operation.
"""

from collections.abc import Iterator
from typing import Final

__all__ = ["TICK_S", "BitSet", "longest_gap_s"]

TICK_S: Final = 0.01
"""Moments are kept this exactly."""


class BitSet:
    """A set of whole numbers from 0."""

    def __init__(self, packed: bytes = b"") -> None:
        self._bytes = bytearray(packed)

    def add(self, number: int) -> None:
        """Take in a number."""
        place = number >> 3
        if place >= len(self._bytes):
            self._bytes.extend(bytes(place + 1 - len(self._bytes) + 1024))
        self._bytes[place] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bytes) and bool(self._bytes[place] >> (number & 7) & 1)

    def __len__(self) -> int:
        return self._whole.bit_count()

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers from the lowest."""
        for place, byte in enumerate(self._bytes):
            if byte:
                yield from (place << 3 | bit for bit in range(8) if byte >> bit & 1)

    @property
    def packed(self) -> bytes:
        """All of it as bytes."""
        return bytes(self._bytes)

    @property
    def _whole(self) -> int:
        return int.from_bytes(self._bytes, "little")

    def __or__(self, other: "BitSet") -> "BitSet":
        return self._of(self._whole | other._whole)

    def __sub__(self, other: "BitSet") -> "BitSet":
        return self._of(self._whole & ~other._whole)

    @staticmethod
    def _of(whole: int) -> "BitSet":
        return BitSet(whole.to_bytes((whole.bit_length() + 7) // 8, "little"))


def longest_gap_s(ticks: BitSet, since_tick: int) -> float:
    """Return the longest time between two ticks in a row, seconds, of which the later one is after `since_tick`.

    Exact to `TICK_S`; 0 when nothing happened after it.
    """
    longest, before = 0, since_tick
    for tick in ticks:
        if tick > since_tick:
            longest = max(longest, tick - before)
        before = tick
    return longest * TICK_S
