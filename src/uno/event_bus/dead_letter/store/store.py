"""The store of a queue: its layout record, its node, its shards, and which shard a letter belongs to."""

import logging
import random
from collections.abc import Sequence
from hashlib import blake2b
from time import monotonic
from typing import Final

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import LayoutMismatch, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.connect import Seeds
from uno.event_bus.dead_letter.store.durability import Durability
from uno.event_bus.dead_letter.store.layout import FORMAT, QUEUE_KEYS, SHARD_KEYS, queue_key, slot_of
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.server import check_servers
from uno.event_bus.dead_letter.store.shard import LARGEST_BATCH, Layout, Shard
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["Store"]

logger = logging.getLogger(__name__)


DEFAULT_SHARDS: Final = 4
"""Shards of a queue that is made without a word about them."""

ELSEWHERE_AFTER_S: Final = 0.2
"""How long a capture that may use any shard waits for its home."""

AWAY_S: Final = 1.0
"""How long a shard that did not answer is passed over by captures that may use any."""


class Store:
    """All of a queue that is in Redis. `open` before use; `close` at the end."""

    def __init__(self, seeds: Seeds, config: DeadLetterConfig, *, client_name: str = "uno-dlq") -> None:
        self.queue = config.queue
        self.topology = Topology(seeds, timeout_s=config.operation_timeout, client_name=client_name)
        self.shards: list[Shard] = []
        shards = config.shards or DEFAULT_SHARDS
        self.layout = Layout(FORMAT, shards, shards, int(config.lease_seconds * 1000), 1)
        self._config = config
        self._durability = Durability.of(config)
        self._opening = anyio.Lock()
        self._refused: Exception | None = None
        """How the last try to open it ended, if it failed."""
        self._tries = 0

    async def open(self) -> None:
        """Check the servers; read the layout record, or make it when this is the queue's first process. Idempotent.

        Callers that wait while another one tries share its outcome. Raises `LayoutMismatch` when the queue's
        format, protocol or shard count does not fit this process, and `ConfigError` for a server that is not fit.
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
                await self._open()
                self._refused = None
            except Exception as error:
                self._refused = error
                raise
            finally:
                self._tries += 1

    async def _open(self) -> None:
        await self.topology.open()
        facts = await check_servers(self.topology.primaries, strict=self._config.strict)
        if facts.is_cluster and not self.topology.is_cluster:  # the user has named one node of it
            self.topology.is_cluster = True
            await self.topology.open()
            await check_servers(self.topology.primaries, strict=self._config.strict)
        if self._durability is not None:
            for node in self.topology.primaries:
                await self._durability.check(node)
        self._follow(await self._read_layout())
        self.shards = [Shard(self.queue, i, self.topology, self.layout) for i in range(self.layout.shards)]

    async def close(self) -> None:
        """Close the connections; the store can be opened again."""
        self.shards = []
        await self.topology.close()

    async def erase(self) -> None:
        """Remove every key of the queue, letters and all: for a queue that a demo or a benchmark made for itself."""
        await self.open()
        for shard in self.shards:
            await shard.route.send("UNLINK", *map(shard.key, SHARD_KEYS), lane="commands")
        route = Route(self.topology, slot_of(self.queue), self.queue)
        await route.send("UNLINK", *(queue_key(self.queue, name) for name in QUEUE_KEYS), lane="commands")

    async def _read_layout(self) -> Layout:
        route = Route(self.topology, slot_of(self.queue), self.queue)
        args = (PROTOCOL, 1, "", self.layout.shards, self.layout.lease_ms)
        try:
            reply = await route.call(script("layout"), [queue_key(self.queue, "layout")], args, lane="heartbeats")
        except Refused as refused:
            raise LayoutMismatch(
                self.queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
            ) from None
        found = {name.decode(): int(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}
        return Layout(*(found[name] for name in ("format", "shards", "home_shards", "lease_ms", "epoch")))

    def _follow(self, found: Layout) -> None:
        if found.format > FORMAT:
            raise LayoutMismatch(self.queue, "format", FORMAT, found.format, "upgrade this process")
        ours = self._config.shards or found.shards
        # Counts are powers of two: an earlier count of a queue that grew is home_shards times some of them.
        if not found.home_shards <= ours <= found.shards:
            raise LayoutMismatch(
                self.queue, "shards", ours, found.shards, f"set DLQ_SHARDS={found.shards}, or use another DLQ_QUEUE"
            )
        if ours != found.shards:
            logger.info("queue %s has %d shards: DLQ_SHARDS=%d is an earlier count", self.queue, found.shards, ours)
        self.layout = found

    def _limit_of_shard(self) -> int:
        """Letters that a shard may hold: its share and a tenth, because hashing spreads unevenly; 0: any number."""
        share = self._config.max_queue_size / self.layout.shards
        return -(-int(share * 1100) // 1000)

    def shard_of(self, letter_id: str) -> Shard | None:
        """Return the shard that a letter's id names; None when it is not an id of this queue."""
        shard, _, stream_id = letter_id.partition("-")
        ms, _, seq = stream_id.partition("-")
        if not all(part.isascii() and part.isdigit() for part in (shard, ms, seq)):
            return None
        return self.shards[int(shard)] if int(shard) < len(self.shards) else None

    def home_of(self, new: NewLetter) -> int:
        """Return the index of the shard that a letter is captured in.

        It is a hash of its ordering key over the shards that the queue was made with, so that growth keeps
        letters of one key together; else of its capture key over the present ones.
        """
        if new.ordering_key:
            return _hash(new.ordering_key) % self.layout.home_shards
        return _hash(new.capture_key) % self.layout.shards

    async def add(self, letters: Sequence[NewLetter]) -> list[str | Exception | None]:
        """Capture letters, each in its home shard; return by position its id, None (full) or its error."""
        results: list[str | Exception | None] = [None] * len(letters)
        homes: dict[tuple[int, bool], list[int]] = {}
        for position, new in enumerate(letters):
            homes.setdefault((self.home_of(new), new.movable), []).append(position)

        async def capture(home: Shard, positions: list[int], movable: bool) -> None:
            ids: Sequence[str | Exception | None]
            batch = [letters[p] for p in positions]
            try:
                ids = await (self._capture_anywhere(home, batch) if movable else self._capture(home, batch))
            except Exception as error:
                ids = [error] * len(positions)
            for position, id in zip(positions, ids, strict=True):
                results[position] = id

        batches = [
            (self.shards[home], positions[at : at + _BATCH], movable)
            for (home, movable), positions in homes.items()
            for at in range(0, len(positions), _BATCH)
        ]
        if len(batches) == 1:
            await capture(*batches[0])
        else:
            async with anyio.create_task_group() as group:
                for shard, positions, movable in batches:
                    group.start_soon(capture, shard, positions, movable)
        return results

    async def _capture(
        self, shard: Shard, letters: Sequence[NewLetter], patience_s: float | None = None
    ) -> Sequence[str | Exception | None]:
        limit, window_ms = self._limit_of_shard(), int(self._config.dedupe_window * 1000)
        if self._durability is None:
            return await shard.add(letters, limit=limit, window_ms=window_ms, patience_s=patience_s)
        return await shard.add_durably(
            letters, self._durability, limit=limit, window_ms=window_ms, patience_s=patience_s
        )

    async def _capture_anywhere(self, home: Shard, letters: Sequence[NewLetter]) -> Sequence[str | Exception | None]:
        """Capture letters that no later call can name again: at home, or, if its node is away, with another one.

        Only what was certainly not executed goes elsewhere: else the letter could be captured twice.
        """
        others = self._elsewhere(home)
        if others:
            for shard in [home, *others] if _answers(home) else others:
                try:
                    return await self._capture(shard, letters, ELSEWHERE_AFTER_S)
                except StoreUnavailable as error:
                    if not error.certain:
                        raise
        return await self._capture(home, letters)

    def _elsewhere(self, home: Shard) -> list[Shard]:
        """Return a shard of each other node that answers, any of its shards."""
        if not self.topology.is_cluster:
            return []
        of_node = {shard.route.primary: shard for shard in random.sample(self.shards, len(self.shards))}
        of_node.pop(home.route.primary, None)
        return [shard for shard in of_node.values() if _answers(shard)]


def _answers(shard: Shard) -> bool:
    """Whether there is no reason to think that the shard's node is away."""
    since = shard.route.away_since
    return since is None or monotonic() - since > AWAY_S


_BATCH = min(100, LARGEST_BATCH)


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
