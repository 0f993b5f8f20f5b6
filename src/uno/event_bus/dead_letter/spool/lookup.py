"""The lookup: which letters, so old that Redis may have forgotten their capture keys, stand there already."""

from collections.abc import Iterable, Mapping, Sequence
from time import time
from typing import Final, NamedTuple

from uno.event_bus.dead_letter.letter import Letter, NewLetter
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Sought", "found_in", "known_in"]

CLOCK_MARGIN_MS: Final = 60_000
"""How much earlier than its capture a letter is looked for: clocks differ by what is known, and drift."""


class Sought(NamedTuple):
    """A letter that somebody has kept for a while, and that may have been captured already."""

    letter: NewLetter
    """Only its keys count: event id, subscription, dedupe key, ordering key."""
    kept_since_ms: int
    """When its capture was called, by the clock of who keeps it, Unix time, ms."""
    tried: bool
    """It may have been captured at any time since; False: only by an earlier call, within the window before."""


async def known_in(store: Store, sought: Sequence[Sought], window_ms: int, now_ms: int) -> set[int]:
    """Return the positions of those that stand in the queue. Raises `StoreUnavailable`.

    `now_ms` is the time of now by the same clock as `Sought.kept_since_ms`.
    """
    homes: dict[int, list[int]] = {}
    for position, one in enumerate(sought):
        homes.setdefault(store.home_of(one.letter), []).append(position)
    found: set[int] = set()
    for home, positions in homes.items():
        there = await found_in(store, home, [sought[position] for position in positions], window_ms, now_ms)
        found |= {positions[at] for at in there}
    return found


async def found_in(
    store: Store, home: int, sought: Sequence[Sought], window_ms: int, now_ms: int | None = None
) -> set[int]:
    """Return the positions of those letters of a home shard that stand in its stream. Raises `StoreUnavailable`.

    `now_ms` is the time of now by the clock of who keeps them; None: this machine's.
    """
    # Where the queue has grown since, the home may have been another one.
    grown = store.layout.shards != store.layout.home_shards
    keys: set[str] = set()
    for shard in list(store.shards) if grown else [store.shards[home]]:
        keys |= await _keys_in(shard, sought, window_ms, int(time() * 1000) if now_ms is None else now_ms)
    return {position for position, one in enumerate(sought) if one.letter.capture_key in keys}


async def _keys_in(shard: Shard, sought: Sequence[Sought], window_ms: int, now_ms: int) -> set[str]:
    """Return which capture keys of these letters have a letter in the shard.

    COST one call for each 500 letters that were captured from a window before the first of them to the last of
    them, or to now when one was tried.
    """
    ahead_ms = int((await browse.stats(shard))["now"]) - now_ms
    times_ms = [one.kept_since_ms + ahead_ms for one in sought]
    since_ms = max(0, min(times_ms) - window_ms - CLOCK_MARGIN_MS)
    tried = any(one.tried for one in sought)
    until_ms = None if tried else max(times_ms) + CLOCK_MARGIN_MS
    keys: set[str] = set()
    for name, values in _wanted(sought).items():
        cursor = f"{since_ms}-0".encode()
        while cursor and not values.keys() <= keys:
            page = await browse.scan(shard, cursor, whole=False, where={name: list(set(values.values()))})
            keys |= {_capture_key(letter) for letter in page.letters}
            cursor = page.cursor
            if cursor and until_ms is not None and int(cursor.partition(b"-")[0]) > until_ms:
                break
    return keys


def _wanted(sought: Iterable[Sought]) -> Mapping[str, Mapping[str, str]]:
    """Return the field to look for → capture key → that field's value."""
    wanted: dict[str, dict[str, str]] = {}
    for letter, _, _ in sought:
        name = "dedupe_key" if letter.dedupe_key else "event_id"
        wanted.setdefault(name, {})[letter.capture_key] = getattr(letter, name)
    return wanted


def _capture_key(letter: Letter) -> str:
    return NewLetter(
        letter.event_id, "", b"", subscription=letter.subscription, dedupe_key=letter.dedupe_key
    ).capture_key
