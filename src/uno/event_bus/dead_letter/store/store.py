"""The store of a queue: its layout record, its node, its shards, and which shard a letter belongs to."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Final
from weakref import WeakMethod

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import LayoutMismatch, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.audit import Audit
from uno.event_bus.dead_letter.store.captures import Captures, Result
from uno.event_bus.dead_letter.store.connect import CONNECT_TIMEOUT_S, Seeds
from uno.event_bus.dead_letter.store.durability import Durability
from uno.event_bus.dead_letter.store.layout import FORMAT, QUEUE_KEYS, SHARD_KEYS, queue_key, slot_of
from uno.event_bus.dead_letter.store.layout_record import Layout, LayoutRecord
from uno.event_bus.dead_letter.store.lookup import Kept, keys_in
from uno.event_bus.dead_letter.store.registry import Registry
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL
from uno.event_bus.dead_letter.store.server import check_servers
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.topology import ASK_TIMEOUT_S, Topology

__all__ = ["Store"]

logger = logging.getLogger(__name__)


DEFAULT_SHARDS: Final = 4
"""Shards of a queue that is made without a word about them."""

SILENT_S: Final = 0.9 * min(CONNECT_TIMEOUT_S, ASK_TIMEOUT_S)
"""A server that says nothing is waited for longer than this."""

PAUSE_S: Final = 0.1
"""Before a queue that could not be opened is tried again."""


class Store:
    """All of a queue that is in Redis. `open` before use; `close` at the end."""

    def __init__(self, seeds: Seeds, config: DeadLetterConfig, *, client_name: str = "uno-dlq") -> None:
        self.queue = config.queue
        self.topology = Topology(seeds, timeout_s=config.operation_timeout, client_name=client_name)
        self.shards: list[Shard] = []
        shards = config.shards or DEFAULT_SHARDS
        self.layout = Layout(FORMAT, shards, shards, int(config.lease_seconds * 1000), 1)
        self._config = config
        self._seeds = seeds
        self.registry = Registry(self.topology, config.queue)
        self.audit = Audit(self.topology, config.queue, config.audit_length)
        self._record = LayoutRecord(self.topology, config.queue, replace(self.layout))
        self._following = anyio.Lock()
        self._captures = Captures(self.shards, self.layout, self.topology, config)
        self._durability = Durability.of(config)
        self._opening = anyio.Lock()
        self._refused: Exception | None = None
        """How the last try to open it ended, if it failed."""
        self._tries = 0

    async def open(self, *, make: bool = True) -> None:
        """Check the servers; read the layout record, or make it when this is the queue's first process. Idempotent.

        Callers that wait while another one tries share its outcome. Raises `LayoutMismatch` when the queue's
        format, protocol or shard count does not fit this process, `ConfigError` for a server that is not fit, and
        `QueueNotFound` when there is no record and none is to be made.
        """
        if self.shards:
            return
        tries = self._tries
        async with self._opening:
            if self.shards:
                return
            if self._refused is not None and self._tries > tries:
                raise self._refused
            try:
                await self._open_in_time(make=make)
            except Exception as error:
                self._refused = error
                self._tries += 1  # not a try that was cancelled: it has no outcome to share
                raise
            self._refused = None
            self._tries += 1

    async def _open_in_time(self, *, make: bool) -> None:
        """Open it; while servers are silent, as when a machine stands still, try again for as long as a call may take.

        Those that refuse do so at once, and are not asked again. Nor is anybody when the queue may have been made.
        """
        deadline = monotonic() + self._config.operation_timeout
        while True:
            began = monotonic()
            try:
                return await self._open(make=make)
            except StoreUnavailable as error:
                now = monotonic()
                if not error.certain or now - began < SILENT_S or now + PAUSE_S > deadline:
                    raise
            await anyio.sleep(PAUSE_S)

    async def _open(self, *, make: bool) -> None:
        self._seeds.check()
        await self.topology.open()
        facts = await check_servers(self.topology.primaries, strict=self._config.strict)
        if facts.is_cluster and not self.topology.is_cluster:  # the user has named one node of it
            self.topology.is_cluster = True
            await self.topology.open()
            await check_servers(self.topology.primaries, strict=self._config.strict)
        if self._durability is not None:
            for node in self.topology.primaries:
                await self._durability.check(node)
        found = await self._record.layout(make=make)
        ours = self._config.shards or found.shards
        # Counts are powers of two: an earlier count of a queue that grew is home_shards times some of them.
        if not found.home_shards <= ours <= found.shards:
            raise LayoutMismatch(
                self.queue, "shards", ours, found.shards, f"set DLQ_SHARDS={found.shards}, or use another DLQ_QUEUE"
            )
        if ours != found.shards:
            logger.info(
                "queue %s has %d shards: DLQ_SHARDS=%d is an earlier count",
                self.queue,
                found.shards,
                ours,
                extra={"queue": self.queue},
            )
        self._adopt(found, grown_before_s=(found.now - found.grown) / 1000)

    def _adopt(self, found: Layout, *, grown_before_s: float) -> None:
        """Take a layout over: every shard has the one object, so that all change at once."""
        for name in ("format", "shards", "home_shards", "lease_ms", "epoch"):
            setattr(self.layout, name, getattr(found, name))
        # Weak: without a cycle the connections of an event loop that has ended are closed as soon as it is forgotten.
        follow = WeakMethod(self.follow)
        for index in range(len(self.shards), found.shards):
            self.shards.append(Shard(self.queue, index, self.topology, self.layout, follow=follow))
        if found.grown:
            self._captures.grown(grown_before_s)

    async def close(self) -> None:
        """Close the connections; the store can be opened again."""
        self.shards.clear()
        await self.topology.close()

    async def erase(self) -> None:
        """Remove every key of the queue, letters and all: for a queue that a demo or a benchmark made for itself."""
        await self.open()
        for shard in self.shards:
            await shard.route.send("UNLINK", *map(shard.key, SHARD_KEYS), lane="commands")
        route = Route(self.topology, slot_of(self.queue), self.queue)
        await route.send("UNLINK", *(queue_key(self.queue, name) for name in QUEUE_KEYS), lane="commands")

    # -- growth --------------------------------------------------------------------------------------

    async def follow(self, epoch: int) -> None:
        """Bring this process to a layout epoch that a shard, or the registry, has told; end a growth that was begun.

        Raises `StoreUnavailable` when that does not come to an end within ``operation_timeout``.
        """
        deadline = monotonic() + self._config.operation_timeout
        async with self._following:
            while self.layout.epoch < epoch:
                found = await self._record.layout()
                if found.growing:
                    found = await self._finish_growth(found)
                if found.epoch > self.layout.epoch:
                    # Not before this process has heard of it, whatever the clocks of the record's nodes say.
                    self._adopt(found, grown_before_s=0)
                    logger.info("queue %s has %d shards now", self.queue, found.shards, extra={"queue": self.queue})
                elif monotonic() > deadline:
                    raise StoreUnavailable(f"queue {self.queue} is at layout epoch {found.epoch}", certain=True)
                else:
                    await anyio.sleep(0.05)

    async def _finish_growth(self, found: Layout) -> Layout:
        """Take every step that is left of a growth; each may be taken by several processes at once."""
        epoch = found.epoch + 1
        for index in [*range(found.shards, found.growing), *range(found.shards)]:  # the new ones first
            try:
                await Shard(self.queue, index, self.topology, self.layout).adopt(epoch)
            except Refused as refused:
                if refused.code == "UPGRADE":
                    raise LayoutMismatch(
                        self.queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
                    ) from None
                break  # a later growth: this one is at its end
        await self._record.grow(found, found.growing, "end")
        return await self._record.layout()

    async def grow(self, shards: int) -> Layout:
        """Give a live queue more shards; return its layout then. A repeat, also to end a growth, is safe.

        Raises `ConfigError` for a count that it cannot have, `StoreUnavailable` when a node is away: until a repeat
        ends it, or any process of the queue does, shards that have adopted the new epoch wait.
        """
        await self.open()
        found = await self._record.layout()
        if found.growing and found.growing != shards:
            found = await self._finish_growth(found)
        if found.shards != shards:
            found.check_growth(shards)
            if not found.growing and not await self._record.grow(found, shards, "begin"):
                return await self.grow(shards)  # another process was quicker
            found = await self._finish_growth(found if found.growing else replace(found, growing=shards))
        await self.follow(found.epoch)
        return found

    async def restore(self) -> None:
        """Grow the queue once more as this process knows it to have grown: a failover has taken that from the record.

        The shards know: without it, processes that read the record would be refused by them for ever.
        """
        found = await self._record.layout()
        if found.epoch < self.layout.epoch and found.shards < self.layout.shards:
            logger.warning(
                "queue %s: the record has lost its growth to %d shards",
                self.queue,
                self.layout.shards,
                extra={"queue": self.queue},
            )
            await self.grow(self.layout.shards)

    # -- letters -------------------------------------------------------------------------------------

    def shard_of(self, letter_id: str) -> Shard | None:
        """Return the shard that a letter's id names; None when it is not an id of this queue."""
        shard, _, stream_id = letter_id.partition("-")
        ms, _, seq = stream_id.partition("-")
        if not all(part.isascii() and part.isdigit() for part in (shard, ms, seq)):
            return None
        return self.shards[int(shard)] if int(shard) < len(self.shards) else None

    @property
    def homes(self) -> int:
        """Shards of the queue."""
        return self.layout.shards

    @property
    def window_s(self) -> float:
        """How long captures are remembered."""
        return self._config.dedupe_window

    def home_of(self, new: NewLetter) -> int:
        """Return the index of the shard that a letter is captured in."""
        return self._captures.home_of(new)

    async def known(self, kept: Sequence[Kept], *, now_ms: int) -> set[int]:
        """Return the positions of those letters that stand in their home shards; `now_ms` is the caller's clock.

        One that was never tried may have been captured by an earlier call, within the window before its own. Raises
        `StoreUnavailable`. COST a walk for each home, see `lookup.keys_in`.
        """
        window_ms = int(self._config.dedupe_window * 1000)
        # Where the queue has grown since, the home may have been another one.
        grown = self.layout.shards != self.layout.home_shards
        homes: dict[int, list[int]] = {}
        for position, each in enumerate(kept):
            homes.setdefault(self.home_of(each.letter), []).append(position)
        found: set[int] = set()
        for home, positions in homes.items():
            theirs, keys = [kept[position] for position in positions], set[str]()
            for shard in list(self.shards) if grown else [self.shards[home]]:
                keys |= await keys_in(shard, theirs, window_ms=window_ms, now_ms=now_ms)
            found |= {position for position in positions if kept[position].letter.capture_key in keys}
        return found

    async def add(self, letters: Sequence[NewLetter]) -> list[Result]:
        """Capture letters, each in its home shard; return by position its id, None (full) or its error."""
        return await self._captures.add(letters)
