"""The lookup: which spooled letters, so old that Redis may have forgotten their capture keys, stand there already."""

from collections.abc import Iterable, Mapping, Sequence
from time import time
from typing import Final

from uno.event_bus.dead_letter.letter import Letter, NewLetter
from uno.event_bus.dead_letter.spool.record import Record, State
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["found_in"]

CLOCK_MARGIN_MS: Final = 60_000
"""How much earlier than its capture a letter is looked for: clocks differ by what is known, and drift."""


async def found_in(store: Store, home: int, records: Sequence[Record], window_ms: int) -> set[int]:
    """Return the offsets of those letters of a home shard that stand in its stream. Raises `StoreUnavailable`.

    One that was never tried may have been captured by an earlier call, within the window before its own.
    """
    # Where the queue has grown since, the home may have been another one.
    grown = store.layout.shards != store.layout.home_shards
    keys: set[str] = set()
    for shard in list(store.shards) if grown else [store.shards[home]]:
        keys |= await _keys_in(shard, records, window_ms)
    return {record.offset for record in records if record.letter.capture_key in keys}


async def _keys_in(shard: Shard, records: Sequence[Record], window_ms: int) -> set[str]:
    """Return which capture keys of these letters have a letter in the shard.

    COST one call for each 500 letters that were captured from a window before the first of them to the last of
    them, or to now when one was tried.
    """
    ahead_ms = int((await browse.stats(shard))["now"]) - int(time() * 1000)
    times_ms = [record.captured_at_ms + ahead_ms for record in records]
    since_ms = max(0, min(times_ms) - window_ms - CLOCK_MARGIN_MS)
    tried = any(record.state is State.TRIED for record in records)
    until_ms = None if tried else max(times_ms) + CLOCK_MARGIN_MS
    keys: set[str] = set()
    for name, values in _wanted(records).items():
        cursor = f"{since_ms}-0".encode()
        while cursor and not values.keys() <= keys:
            page = await browse.scan(shard, cursor, whole=False, where={name: list(set(values.values()))})
            keys |= {_capture_key(letter) for letter in page.letters}
            cursor = page.cursor
            if cursor and until_ms is not None and int(cursor.partition(b"-")[0]) > until_ms:
                break
    return keys


def _wanted(records: Iterable[Record]) -> Mapping[str, Mapping[str, str]]:
    """Return the field to look for → capture key → that field's value."""
    wanted: dict[str, dict[str, str]] = {}
    for record in records:
        name = "dedupe_key" if record.letter.dedupe_key else "event_id"
        wanted.setdefault(name, {})[record.letter.capture_key] = getattr(record.letter, name)
    return wanted


def _capture_key(letter: Letter) -> str:
    return NewLetter(
        letter.event_id, "", b"", subscription=letter.subscription, dedupe_key=letter.dedupe_key
    ).capture_key
