"""What is told of a queue and its servers at one moment, as plain values, and the cache that scrapes share.

A shard or a server that is away is told as it was when it last answered, and said to be away. So a total never falls
because a node is gone: Prometheus would take that for a restart, and its return for as many new events.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, NamedTuple, Self

import anyio

__all__ = ["FRESH_S", "TOTALS", "ServerSeen", "ServerUsage", "ShardSeen", "Snapshot", "Snapshots", "SpoolSeen"]

FRESH_S: Final = 1.0
"""A snapshot that is no older than this serves a scrape."""

TOTALS: Final = (
    "captured",
    "repeated",
    "resolved",
    "retried",
    "parked_total",
    "released",
    "redriven",
    "discarded",
    "expired",
    "crashed",
    "orphaned",
    "lost_externally",
    "new_error_groups",
)
"""Totals of a shard, as its script `stats` names them."""

type Books = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class ShardSeen:
    """One shard: what it says of itself by the script `stats`."""

    is_up: bool
    books: Books = field(default_factory=dict)
    """As of its last answer; empty when it never gave one."""
    answered_at: float = 0.0
    """Monotonic time of that, seconds."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Total → what it had come to each time that it began anew, added up; since this process first heard of it."""

    def total(self, name: str) -> int:
        """Return a total that never falls."""
        return self.number(name) + self.ended.get(name, 0)

    def number(self, name: str) -> int:
        """Return a count or a total; 0 where there is none."""
        return _whole(self.books.get(name))

    def _age_s(self, since_ms: int, at: float) -> float:
        """Return the seconds from a time of the shard's until the monotonic time `at`; 0 for one to come, or none."""
        return max(0.0, (self.number("now") - since_ms) / 1000 + at - self.answered_at) if since_ms else 0.0

    def oldest_age_s(self, at: float) -> float:
        """Return the age of the oldest open letter at a monotonic time, seconds; 0 without letters."""
        return self._age_s(_whole(str(self.books.get("oldest", "")).partition("-")[0]), at)

    def due_age_s(self, at: float) -> float:
        """Return since when the longest-due letter was due at a monotonic time, seconds; 0 when none is."""
        return max(self._age_s(self.number(name), at) for name in ("next_due", "suspect_due", "waiting_due"))

    def after(self, before: "ShardSeen | None") -> Self:
        """Return this with totals that have not fallen since `before`.

        A failover may take a shard back by some letters, and they are captured and counted again. Only a total that
        has fallen by half or more began anew: the shard has lost its books, or the queue was removed. It goes on from
        where it ended: the sum over the shards would fall a little, and all of it count as new events.
        """
        if before is None:
            return self
        kept: dict[str, int] = {}
        ended = dict(before.ended)
        for name in TOTALS:
            was, now = before.number(name), self.number(name)
            if was / 2 < now < was:
                kept[name] = was
            elif now < was:
                ended[name] = ended.get(name, 0) + was
        return replace(self, books={**self.books, **kept} if kept else self.books, ended=ended)


def _whole(value: int | str | None) -> int:
    """Return a number that a script has answered; 0 for none, and for what a stranger has made no number."""
    try:
        return value if isinstance(value, int) else int(float(value or 0))
    except (ValueError, OverflowError):
        return 0


class ServerUsage(NamedTuple):
    """What a server uses."""

    used_memory: int
    memory_limit: int
    """``maxmemory``, without it the machine's memory; 0 when the server tells neither."""
    cpu_s: float
    received_bytes: int
    sent_bytes: int
    may_evict: bool


class ServerSeen(NamedTuple):
    """One server."""

    is_up: bool
    usage: ServerUsage | None = None
    """As of its last answer; None when it never gave one."""


class SpoolSeen(NamedTuple):
    """What waits in the spool of this machine."""

    bytes: int
    letters: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A queue and its servers at one moment."""

    queue: str
    shards: tuple[ShardSeen, ...] = ()
    """By index; empty while the queue could not be opened."""
    servers: Mapping[str, ServerSeen] = field(default_factory=dict)
    """Address → what it told."""
    workers: tuple[tuple[int, ...], ...] | None = None
    """Of each live worker the shards that it serves; None: the registry did not answer."""
    spool: SpoolSeen | None = None
    """None without a spool, and when the disk does not tell."""
    taken_at: float = 0.0
    """Monotonic time at its end, seconds."""

    @property
    def are_all_known(self) -> bool:
        """Whether every shard has answered once: else totals would be too small, and jump later."""
        return bool(self.shards) and all(shard.books for shard in self.shards)

    def total(self, name: str) -> int:
        """Return the sum over the shards of a count or a total."""
        return sum(shard.total(name) for shard in self.shards)

    def away(self) -> "Snapshot":
        """Return what is told when nothing answers any more."""
        return replace(
            self,
            shards=tuple(replace(shard, is_up=False) for shard in self.shards),
            servers={name: server._replace(is_up=False) for name, server in self.servers.items()},
            workers=None,
            taken_at=monotonic(),
        )


class Snapshots:
    """The latest snapshot: taken when it is asked for, at most once a second, for all who ask at the same time.

    `take` gets the snapshot before, and answers in bounded time. Of one event loop; `latest` may be read anywhere.
    """

    def __init__(self, take: Callable[[Snapshot | None], Awaitable[Snapshot]], *, fresh_s: float = FRESH_S) -> None:
        self._take = take
        self._fresh_s = fresh_s
        self._refreshing = anyio.Lock()
        self.latest: Snapshot | None = None

    async def refresh(self) -> Snapshot:
        """Return the latest snapshot, a new one when that is old."""
        async with self._refreshing:
            if self.latest is None or monotonic() - self.latest.taken_at > self._fresh_s:
                self.latest = await self._take(self.latest)
            return self.latest
