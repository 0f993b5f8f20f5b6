"""Operators' reads of a shard: pages, counts and checks. Nothing here changes a letter."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from uno.event_bus.dead_letter.letter import Letter, LetterState
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import counters_of

__all__ = ["Page", "Verified", "find", "scan", "stats", "verify"]

type Where = Mapping[str, Sequence[str]]
"""Name (``state`` or a field of the wire format) → values, one of which must match."""


class Page(NamedTuple):
    """One page of `scan`; the cursor is empty at the end."""

    cursor: bytes
    now_ms: int
    letters: list[Letter]


class Verified(NamedTuple):
    """One part of `verify`; the cursor is empty at the end."""

    cursor: bytes
    violations: list[tuple[str, str, str]]
    """Kind, letter id, and where it is recorded."""
    drift: int
    """Letters gone without an end; below 0: letters of strangers that no worker has seen."""
    waiting: int


async def scan(
    shard: Shard,
    cursor: bytes = b"-",
    *,
    most: int = 100,
    whole: bool = True,
    where: Where | None = None,
    replica: bool = False,
) -> Page:
    """Return the letters after the cursor that match, oldest capture first; a page may be short or empty.

    Without `whole`, payload and traceback are left out. With `replica` the answer may be behind: for reading alone.
    """
    conditions = [word for name, values in (where or {}).items() for value in values for word in (name, value)]
    reply = await shard.call("scan", [cursor, most, int(whole), *conditions], replica=replica)
    return Page(reply[0], int(reply[1]), [_letter(shard, row, reply[3]) for row in reply[2]])


def _letter(shard: Shard, row: Sequence[bytes | list[bytes]], lead_ms: int) -> Letter:
    id, state, score, fields, counters, history = row
    assert isinstance(id, bytes) and isinstance(state, bytes) and isinstance(score, bytes)
    assert isinstance(fields, list) and isinstance(history, bytes)
    letter = Letter.from_fields(
        shard.letter_id(id),
        dict(zip(fields[::2], fields[1::2], strict=True)),
        state=LetterState(state.decode()),
        counters=counters_of(counters),
        packed_history=history,
        since_ms=int(float(score)),
    )
    if letter.state in (LetterState.SCHEDULED, LetterState.SUSPECT):
        letter.due_ms = letter.since_ms - lead_ms
    elif letter.not_before_ms:
        letter.due_ms = letter.not_before_ms - lead_ms
    return letter


_LARGEST: Final = 2**64 - 1
"""Of each of a stream id's two parts."""


async def find(shard: Shard, letter_id: str, *, replica: bool = False) -> Letter | None:
    """Return the letter of this id; None when the shard, or with `replica` one that may be behind, has none."""
    ms, seq = map(int, shard.stream_id(letter_id).split("-"))
    if not (ms, seq) > (0, 0) or max(ms, seq) > _LARGEST:
        return None  # no stream can hold it
    before = f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{_LARGEST}"
    page = await scan(shard, before.encode(), most=1, replica=replica)
    return page.letters[0] if page.letters and page.letters[0].id == letter_id else None


async def stats(shard: Shard, *, replica: bool = False, patience_s: float | None = None) -> dict[str, int | str]:
    """Return the shard's counts and totals by name: one bounded call, no scan; `patience_s` as of `Route.call`."""
    reply = await shard.call("stats", [], replica=replica, patience_s=patience_s)
    found: dict[str, int | str] = {}
    for name, value in zip(reply[::2], reply[1::2], strict=True):
        text = value if isinstance(value, int) else value.decode()
        found[name.decode()] = int(float(text)) if isinstance(text, str) and text.isdigit() else text
    return found


async def verify(shard: Shard, cursor: bytes = b"") -> Verified:
    """Check the invariants over a bounded part of the shard."""
    reply = await shard.call("verify", [cursor])
    violations = [(kind.decode(), shard.letter_id(id), str(where, "utf-8")) for kind, id, where in reply[1]]
    return Verified(reply[0], violations, int(reply[2]), int(reply[3]))
