"""The lookup: which letters that a producer has kept, so long that Redis may have forgotten their capture keys, stand
in the stream already.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from uno.event_bus.dead_letter.letter import Letter, NewLetter
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard

__all__ = ["Kept", "keys_in"]

CLOCK_MARGIN_MS: Final = 60_000
"""How much earlier than its capture a letter is looked for: clocks differ by what is known, and drift."""


class Kept(NamedTuple):
    """A letter that its producer could not capture, or does not know whether it did."""

    letter: NewLetter
    since_ms: int
    """When that was, by the producer's clock."""
    tried: bool
    """It may have been captured since; False: only by an earlier call, within the window before its own."""


async def keys_in(shard: Shard, kept: Sequence[Kept], *, window_ms: int, now_ms: int) -> set[str]:
    """Return which capture keys of these letters have a letter in the shard; `now_ms` is the producer's clock.

    Raises `StoreUnavailable`.

    COST one call for each 500 letters that were captured from a window before the first of them to the last of
    them, or to now when one was tried.
    """
    ahead_ms = int((await browse.stats(shard))["now"]) - now_ms
    times_ms = [each.since_ms + ahead_ms for each in kept]
    since_ms = max(0, min(times_ms) - window_ms - CLOCK_MARGIN_MS)
    until_ms = None if any(each.tried for each in kept) else max(times_ms) + CLOCK_MARGIN_MS
    keys: set[str] = set()
    for name, values in _wanted(kept).items():
        cursor = f"{since_ms}-0".encode()
        while cursor and not values.keys() <= keys:
            page = await browse.scan(shard, cursor, whole=False, where={name: list(set(values.values()))})
            keys |= {_capture_key(letter) for letter in page.letters}
            cursor = page.cursor
            if cursor and until_ms is not None and int(cursor.partition(b"-")[0]) > until_ms:
                break
    return keys


def _wanted(kept: Iterable[Kept]) -> Mapping[str, Mapping[str, str]]:
    """Return the field to look for → capture key → that field's value."""
    wanted: dict[str, dict[str, str]] = {}
    for each in kept:
        name = "dedupe_key" if each.letter.dedupe_key else "event_id"
        wanted.setdefault(name, {})[each.letter.capture_key] = getattr(each.letter, name)
    return wanted


def _capture_key(letter: Letter) -> str:
    return NewLetter(
        letter.event_id, "", b"", subscription=letter.subscription, dedupe_key=letter.dedupe_key
    ).capture_key
