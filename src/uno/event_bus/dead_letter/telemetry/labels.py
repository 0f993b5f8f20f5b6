"""Values of labels that come from applications: cleaned, of bounded length, and of a bounded number."""

from threading import Lock
from typing import Final

from uno.event_bus.dead_letter.letter import DeadLetterReason
from uno.event_bus.dead_letter.telemetry.names import MOST_PAIRS, OTHER

__all__ = ["LONGEST", "MOST_REASONS", "Labels"]

LONGEST: Final = 100
"""Characters of a label's value; what is longer is cut."""

MOST_REASONS: Final = 10
"""Reasons of the application's own words that have series; the rest share one."""


class Labels:
    """The values that one process uses. First come, first served: a pair that is known stays known."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._reasons = {"": "", **{reason.value: reason.value for reason in DeadLetterReason}}
        self._most_reasons = len(self._reasons) + MOST_REASONS
        self._lock = Lock()

    def pair(self, type: str, subscription: str) -> tuple[str, str]:
        """Return the values for an event type and a subscription, `OTHER` twice for the pairs beyond `MOST_PAIRS`."""
        pair = type, subscription
        found = self._pairs.get(pair)
        if found is None:
            with self._lock:
                if pair not in self._pairs and len(self._pairs) >= MOST_PAIRS:
                    return OTHER, OTHER
                found = self._pairs[pair] = _clean(type), _clean(subscription)
        return found

    def reason(self, reason: str) -> str:
        """Return the value for a reason, `OTHER` for those beyond `MOST_REASONS`."""
        found = self._reasons.get(reason)
        if found is None:
            with self._lock:
                if reason not in self._reasons and len(self._reasons) >= self._most_reasons:
                    return OTHER
                found = self._reasons[reason] = _clean(reason)
        return found


def _clean(text: str) -> str:
    """Return a text with nothing in it that a terminal would obey, and that UTF-8 can hold."""
    return "".join(letter if letter.isprintable() else "�" for letter in text[:LONGEST])
