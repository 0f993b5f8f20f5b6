"""What a shard holds, and what must have become of each letter.

A `Snapshot` is everything in the shard at one moment, with its own idea of where each letter is recorded, written
down a second time from the design and not from the Lua. The `Books` are what the calls answered.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from tests.model.explorer.wire import Word, is_error

__all__ = ["INDEXES", "Books", "Known", "Pending", "Place", "Snapshot", "Violation", "at", "commands", "taken_apart"]

INDEXES: Final = {"suspect": "suspects", "scheduled": "schedule", "held": "held", "parked": "parked"}
"""State → key, strongest first; a lease is stronger than all."""

ENDS: Final = ("resolved", "discarded", "expired", "lost_externally")
_ZSETS: Final = ("schedule", "suspects", "held", "parked")
_HASHES: Final = ("meta", "state", "history", "groups", "group_info", "dedupe_a", "dedupe_b", "dedupe_c")


class Violation(AssertionError):
    """Something that must never be; `code` is what stays the same while a run is shrunk."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {text}")


def at(stream_id: str) -> tuple[int, int]:
    """Return a stream id as what orders it."""
    ms, _, seq = stream_id.partition("-")
    return int(ms), int(seq)


def text(value: bytes) -> str:
    """Return bytes as text, one character a byte."""
    return value.decode("latin-1")


class Pending(NamedTuple):
    """One lease as the group has it."""

    consumer: str
    token: int
    idle_ms: int


class Place(NamedTuple):
    """Where a letter is recorded."""

    state: str
    score: str


def commands(key: dict[str, str]) -> list[tuple[Word, ...]]:
    """Return what has to be asked for a snapshot."""
    return [
        ("XRANGE", key["letters"], "-", "+"),
        ("XPENDING", key["letters"], "workers", "-", "+", 10_000),
        ("XINFO", "GROUPS", key["letters"]),
        *(("ZRANGE", key[name], 0, -1, "WITHSCORES") for name in _ZSETS),
        *(("HGETALL", key[name]) for name in _HASHES),
    ]


COMMANDS: Final = 3 + len(_ZSETS) + len(_HASHES)


@dataclass(frozen=True)
class Snapshot:
    """Everything that a shard holds."""

    entries: dict[str, dict[str, str]]
    pending: dict[str, Pending]
    group: tuple[str, int] | None
    """Last delivered id and number of consumers; None without a group."""
    zsets: dict[str, dict[str, str]]
    hashes: dict[str, dict[str, str]]

    @property
    def meta(self) -> dict[str, str]:
        return self.hashes["meta"]

    def shard_ms(self, server_us: int) -> int:
        """The shard's time when its server's clock says `server_us`."""
        return self._shard_us(server_us) // 1000

    def lead_ms(self, server_us: int) -> int:
        """By how much that is ahead of the server's clock."""
        return (self._shard_us(server_us) - server_us) // 1000

    def _shard_us(self, server_us: int) -> int:
        latest, lead = (int(self.meta.get(name, "0")) for name in ("clock", "lead"))
        ahead_us = server_us + lead
        return latest if ahead_us < latest else ahead_us - min(lead, (ahead_us - latest) // 8)

    def total(self, name: str) -> int:
        return int(self.meta.get(name, "0"))

    @cached_property
    def mark(self) -> str:
        """The mark; without one the group's position counts, without both the last id (here: of an entry)."""
        if "mark" in self.meta:
            return self.meta["mark"]
        if self.group:
            return self.group[0]
        return max(self.entries, key=at, default="0-0")

    def is_ahead(self, id: str) -> bool:
        return at(id) > at(self.mark)

    def places(self, id: str) -> list[Place]:
        """Every place that records the letter, strongest first."""
        found = [Place("leased", "0")] if id in self.pending else []
        for state, key in INDEXES.items():
            score = self.zsets[key].get(id)
            if score is not None:
                found.append(Place(state, score))
        return found

    def place(self, id: str) -> Place | None:
        """The strongest place; `waiting` past the mark; None: recorded nowhere."""
        found = self.places(id)
        if found:
            return found[0]
        return Place("waiting", "0") if self.is_ahead(id) else None

    @cached_property
    def waiting(self) -> frozenset[str]:
        return frozenset(id for id in self.entries if self.is_ahead(id))

    @cached_property
    def orphans(self) -> frozenset[str]:
        """Letters up to the mark that are recorded nowhere."""
        return frozenset(id for id in self.entries if self.place(id) is None)

    @cached_property
    def doubles(self) -> frozenset[str]:
        """Letters in more than one place."""
        return frozenset(id for id in self.entries if len(self.places(id)) > 1)

    @cached_property
    def ghosts(self) -> frozenset[tuple[str, str]]:
        """Rows and leases of entries that are not there: (where, id)."""
        found = {("leased", id) for id in self.pending if id not in self.entries}
        rows = {state: self.zsets[key] for state, key in INDEXES.items()}
        rows |= {key: self.hashes[key] for key in ("state", "history")}
        return frozenset(found | {(name, id) for name, ids in rows.items() for id in ids if id not in self.entries})

    @cached_property
    def ahead(self) -> frozenset[tuple[str, str]]:
        """Rows and leases past the mark: the intake has yet to come there."""
        return frozenset(row for row in self.rows if self.is_ahead(row[1]))

    @cached_property
    def rows(self) -> frozenset[tuple[str, str]]:
        """Every place that is recorded, of letters that are there or not: (state, id)."""
        rows = {"leased": self.pending} | {state: self.zsets[key] for state, key in INDEXES.items()}
        return frozenset((state, id) for state, ids in rows.items() for id in ids)

    @property
    def drift(self) -> int:
        """Letters that should be here by the totals, less those that are."""
        return self.total("captured") - sum(map(self.total, ENDS)) - len(self.entries)

    def same_as(self, other: "Snapshot") -> str:
        """Return what differs, in words; empty when nothing does. Leases may have aged meanwhile."""
        for name in ("entries", "group", "zsets", "hashes"):
            if getattr(self, name) != getattr(other, name):
                return f"{name}: {_difference(getattr(self, name), getattr(other, name))}"
        if self.leases != other.leases:
            return f"leases: {_difference(self.leases, other.leases)}"
        renewed = [id for id, lease in other.pending.items() if lease.idle_ms < self.pending[id].idle_ms]
        return f"leases renewed: {renewed}" if renewed else ""

    @cached_property
    def leases(self) -> dict[str, tuple[str, int]]:
        return {id: lease[:2] for id, lease in self.pending.items()}


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return "; ".join(f"{key}: {_difference(before.get(key), after.get(key))}" for key in changed)
    return f"{before!r} became {after!r}"


def taken_apart(replies: list[Any]) -> Snapshot:
    """Return the snapshot that the replies to `commands` say."""
    entries, pending, groups, *rest = replies
    found = None
    for flat in [] if is_error(groups) else groups:
        info = dict(zip(flat[::2], flat[1::2], strict=True))
        if info[b"name"] == b"workers":
            found = (text(info[b"last-delivered-id"]), info[b"consumers"])
    return Snapshot(
        {text(id): fields_of(flat) for id, flat in entries},
        {}
        if is_error(pending)
        else {text(id): Pending(text(consumer), token, idle) for id, consumer, idle, token in pending},
        found,
        {name: fields_of(rest[i]) for i, name in enumerate(_ZSETS)},
        {name: fields_of(rest[len(_ZSETS) + i]) for i, name in enumerate(_HASHES)},
    )


def fields_of(flat: list[bytes]) -> dict[str, str]:
    """Return a flat list of names and values as a dict."""
    words = list(map(text, flat))
    return dict(zip(words[::2], words[1::2], strict=True))


@dataclass(slots=True)
class Known:
    """One letter as the books have it."""

    fields: dict[str, str]
    foreign: bool = False
    failures: int = 0
    crashes: int = 0
    releases: int = 0
    redrives: int = 0
    history: str = ""
    uncounted: bool = False
    """Perhaps not in the total of captured letters: its `add` died, or a stranger wrote it like ours."""
    end: str = ""
    """How it left: a total's name, `deleted` (by a stranger) or `died` (in a script that died)."""


@dataclass(slots=True)
class Books:
    """What must be so in this timeline; a failover takes it back together with the shard."""

    letters: dict[str, Known] = field(default_factory=dict)
    keys: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    """Capture key → the id answered, when (ms), and to whom."""
    totals: Counter[str] = field(default_factory=Counter)

    def copy(self) -> "Books":
        """Return a copy that shares only what never changes."""
        copied = {
            id: Known(
                it.fields,
                it.foreign,
                it.failures,
                it.crashes,
                it.releases,
                it.redrives,
                it.history,
                it.uncounted,
                it.end,
            )
            for id, it in self.letters.items()
        }
        return Books(copied, dict(self.keys), Counter(self.totals))

    def end(self, id: str, how: str) -> None:
        """A letter has left the stream."""
        known = self.letters[id]
        if known.end:
            raise Violation("two-ends", f"{id} is {how}, and was {known.end} before")
        known.end = how

    def ended(self, how: str) -> int:
        return sum(known.end == how for known in self.letters.values())
