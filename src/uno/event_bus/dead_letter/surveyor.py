"""The surveyor: asks shards, servers, registry and spool what metrics tell of a queue, in bounded time."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import monotonic
from typing import Final

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.spool.folder import SpoolStats
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.node import Node
from uno.event_bus.dead_letter.store.server import read_usage
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.telemetry.snapshot import ServerSeen, ShardSeen, Snapshot, SpoolSeen

__all__ = ["Surveyor"]

WITHIN_S: Final = 1.5
"""How long all answers together may take: less than a scrape waits for them, which then tells what is away."""

PATIENCE_S: Final = 0.2
"""How long a shard is asked again that certainly did not answer."""


class Surveyor:
    """Takes one snapshot. All are asked at once, so that one that is away holds nobody up but the end."""

    def __init__(
        self,
        queue: str,
        open_store: Callable[[], Awaitable[Store]],
        spool_stats: Callable[[], Awaitable[SpoolStats | None]],
        *,
        within_s: float = WITHIN_S,
    ) -> None:
        self._queue = queue
        self._open_store = open_store
        self._spool_stats = spool_stats
        self._within_s = within_s
        self._shards: dict[int, ShardSeen] = {}
        self._servers: dict[str, ServerSeen] = {}
        self._workers: tuple[tuple[int, ...], ...] | None = None
        self._spool: SpoolSeen | None = None

    async def survey(self, before: Snapshot | None = None) -> Snapshot:
        """Ask all; what does not answer in time is told as it was `before`. Raises nothing of Redis or the disk."""
        store: Store | None = None
        with anyio.move_on_after(self._within_s):
            async with anyio.create_task_group() as group:
                group.start_soon(self._ask_spool)
                store = await self._store()
                if store is not None:
                    group.start_soon(self._ask_registry, store)
                    for node in store.topology.primaries:
                        group.start_soon(self._ask_server, node)
                    for shard in store.shards:
                        group.start_soon(self._ask_shard, shard)
        before = before or Snapshot(self._queue)
        if store is None:
            return before.away()
        return self._gathered(store, before)

    async def _store(self) -> Store | None:
        try:
            return await self._open_store()
        except DeadLetterError:
            return None

    def _gathered(self, store: Store, before: Snapshot) -> Snapshot:
        shards = []
        for index in range(len(store.shards)):
            known = before.shards[index] if index < len(before.shards) else None
            away = ShardSeen(False) if known is None else replace(known, is_up=False)
            shards.append(self._shards[index].after(known) if index in self._shards else away)
        servers = {}
        for node in store.topology.primaries:
            name = node.target.name
            away_server = before.servers.get(name, ServerSeen(False))._replace(is_up=False)
            servers[name] = self._servers.get(name, away_server)
        return Snapshot(self._queue, tuple(shards), servers, self._workers, self._spool, monotonic())

    async def _ask_shard(self, shard: Shard) -> None:
        try:
            books = await browse.stats(shard, patience_s=PATIENCE_S)
        except DeadLetterError:
            return
        self._shards[shard.index] = ShardSeen(True, books, monotonic())

    async def _ask_server(self, node: Node) -> None:
        try:
            self._servers[node.target.name] = ServerSeen(True, await read_usage(node))
        except DeadLetterError:
            return

    async def _ask_registry(self, store: Store) -> None:
        try:
            self._workers = tuple(worker.shards for worker in await store.registry.roster())
        except DeadLetterError:
            return

    async def _ask_spool(self) -> None:
        found = await self._spool_stats()
        if found is not None:
            self._spool = SpoolSeen(found.bytes, found.letters, found.oldest_age_s or 0.0)
