"""The store of a queue: its layout record, its node, its shards, and which shard a letter belongs to."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import LayoutMismatch
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.connect import Target
from uno.event_bus.dead_letter.store.layout import FORMAT, layout_key
from uno.event_bus.dead_letter.store.node import Node, Refused
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.server import check_server
from uno.event_bus.dead_letter.store.shard import LARGEST_BATCH, Layout, Shard

__all__ = ["Store"]


DEFAULT_SHARDS: Final = 4
"""Shards of a queue that is made without a word about them."""


class Store:
    """All of a queue that is in Redis. `open` before use; `close` at the end."""

    def __init__(self, target: Target, config: DeadLetterConfig, *, client_name: str = "uno-dlq") -> None:
        self.queue = config.queue
        self.node = Node(target, timeout_s=config.operation_timeout, client_name=client_name)
        self.shards: list[Shard] = []
        shards = config.shards or DEFAULT_SHARDS
        self.layout = Layout(FORMAT, shards, shards, int(config.lease_seconds * 1000), 1)
        self._config = config
        self._opening = anyio.Lock()

    async def open(self) -> None:
        """Check the server; read the layout record, or make it when this is the queue's first process. Idempotent.

        Raises `LayoutMismatch` when the queue's format, protocol or shard count does not fit this process, and
        `ConfigError` for a server that is not fit.
        """
        if self.shards:
            return
        async with self._opening:
            if not self.shards:
                await check_server(self.node, strict=self._config.strict)
                self._follow(await self._read_layout())
                self.shards = [Shard(self.queue, i, self.node, self.layout) for i in range(self.layout.shards)]

    async def close(self) -> None:
        """Close the connections; the store can be opened again."""
        self.shards = []
        await self.node.close()

    async def _read_layout(self) -> Layout:
        args = (PROTOCOL, 1, "", self.layout.shards, self.layout.lease_ms)
        try:
            reply = await self.node.call(script("layout"), [layout_key(self.queue)], args, queue=self.queue)
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
        homes: dict[int, list[int]] = {}
        for position, new in enumerate(letters):
            homes.setdefault(self.home_of(new), []).append(position)

        async def capture(shard: Shard, positions: list[int]) -> None:
            ids: Sequence[str | Exception | None]
            try:
                ids = await shard.add(
                    [letters[p] for p in positions],
                    limit=self._limit_of_shard(),
                    window_ms=int(self._config.dedupe_window * 1000),
                )
            except Exception as error:
                ids = [error] * len(positions)
            for position, id in zip(positions, ids, strict=True):
                results[position] = id

        batches = [
            (self.shards[home], positions[at : at + _BATCH])
            for home, positions in homes.items()
            for at in range(0, len(positions), _BATCH)
        ]
        if len(batches) == 1:
            await capture(*batches[0])
        else:
            async with anyio.create_task_group() as group:
                for shard, positions in batches:
                    group.start_soon(capture, shard, positions)
        return results


_BATCH = min(100, LARGEST_BATCH)


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
