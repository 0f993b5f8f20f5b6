"""Captures: which shard a new letter goes to, and how it gets there once.

A letter's home is a hash of its ordering key over the shards that the queue was made with, so that growth keeps
letters of one key together; else of its capture key over the present ones. One whose id the engine made may go
elsewhere: nobody can ask for it a second time.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b
from time import monotonic
from typing import Final

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.letter import NewLetter
from uno.event_bus.dead_letter.store.durability import Durability
from uno.event_bus.dead_letter.store.layout_record import Layout
from uno.event_bus.dead_letter.store.shard import LayoutChanged, Shard
from uno.event_bus.dead_letter.store.topology import Topology
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH

__all__ = ["Captures", "Result"]

ELSEWHERE_AFTER_S: Final = 0.2
"""How long a capture that may use any shard waits for its home."""

AWAY_S: Final = 1.0
"""How long a shard that did not answer is passed over by captures that may use any."""

BATCH: Final = min(100, LARGEST_BATCH)
"""Letters of one call to a shard."""

_RECALLING_UNTIL: Final[dict[str, float]] = {}
"""Queue → monotonic time until which this process asks homes of before a growth, however often it opens the queue."""

type Result = str | Exception | None
"""Of one letter: its id, its error, or None when its shard is full."""


class Captures:
    """Puts letters into the shards of one queue; `shards` and `layout` are the store's own, which growth changes."""

    def __init__(self, shards: list[Shard], layout: Layout, topology: Topology, config: DeadLetterConfig) -> None:
        self._shards = shards
        self._layout = layout
        self._topology = topology
        self._queue = config.queue
        self._window_s = config.dedupe_window
        self._max_queue_size = config.max_queue_size
        self._durability = Durability.of(config)
        self._recalling_until = float("-inf")
        """Monotonic time until which a capture key may be remembered by its home of before a growth."""

    def grown(self, before_s: float) -> None:
        """Note that the queue grew so many seconds ago; what this process has noted of it before may be later."""
        until = max(monotonic() + self._window_s - before_s, _RECALLING_UNTIL.get(self._queue, 0))
        self._recalling_until = _RECALLING_UNTIL[self._queue] = until

    def _limit_of_shard(self) -> int:
        """Letters that a shard may hold: its share and a tenth, because hashing spreads unevenly; 0: any number."""
        share = self._max_queue_size / self._layout.shards
        return -(-int(share * 1100) // 1000)

    def home_of(self, new: NewLetter) -> int:
        """Return the index of the shard that a letter is captured in."""
        if new.ordering_key:
            return _hash(new.ordering_key) % self._layout.home_shards
        return _hash(new.capture_key) % self._layout.shards

    async def add(self, letters: Sequence[NewLetter]) -> list[Result]:
        """Capture letters, each in its home shard; return by position its id, None (full) or its error."""
        if not letters:
            return []
        results: list[Result] = [None] * len(letters)
        homes = [self.home_of(new) for new in letters]
        if monotonic() < self._recalling_until:
            try:
                # Captured there once more: that answers the first id, and is confirmed if it has to be.
                for position, home in (await self._homes_of_before(letters)).items():
                    homes[position] = home
            except DeadLetterError as error:
                return [error] * len(letters)

        async def capture(home: int, movable: bool, positions: list[int]) -> None:
            captured = await self._captured(self._shards[home], [letters[p] for p in positions], movable)
            for position, result in zip(positions, captured, strict=True):
                results[position] = result

        first, *others = self._batches(letters, homes)
        if not others:
            await capture(*first)
            return results
        async with anyio.create_task_group() as group:
            for batch in others:
                group.start_soon(capture, *batch)
            await capture(*first)
        return results

    @staticmethod
    def _batches(letters: Sequence[NewLetter], homes: Sequence[int]) -> list[tuple[int, bool, list[int]]]:
        """Return batches of positions with the home that they have in common, and whether they may go elsewhere."""
        alike: dict[tuple[int, bool], list[int]] = {}
        for position, (new, home) in enumerate(zip(letters, homes, strict=True)):
            alike.setdefault((home, new.movable), []).append(position)
        return [
            (home, movable, found[at : at + BATCH])
            for (home, movable), found in alike.items()
            for at in range(0, len(found), BATCH)
        ]

    async def _captured(self, home: Shard, letters: Sequence[NewLetter], movable: bool) -> Sequence[Result]:
        try:
            return await (self._capture_anywhere(home, letters) if movable else self._capture(home, letters))
        except LayoutChanged as changed:
            results = await self.add(letters)
            if changed.certain:
                return results
            return [result.unsure() if isinstance(result, StoreUnavailable) else result for result in results]
        except Exception as error:
            return [error] * len(letters)

    async def _capture(
        self, shard: Shard, letters: Sequence[NewLetter], patience_s: float | None = None, *, stays: bool = False
    ) -> Sequence[Result]:
        limit, window_ms = self._limit_of_shard(), int(self._window_s * 1000)
        if self._durability is None:
            return await shard.add(letters, limit=limit, window_ms=window_ms, patience_s=patience_s, stays=stays)
        return await shard.add_durably(
            letters, self._durability, limit=limit, window_ms=window_ms, patience_s=patience_s, stays=stays
        )

    async def _capture_anywhere(self, home: Shard, letters: Sequence[NewLetter]) -> Sequence[Result]:
        """Capture letters that no later call can name again: at home, or, if its node is away, with another one.

        Only what was certainly not executed goes elsewhere: else the letter could be captured twice. For the same
        reason a growth moves none of them: an earlier try may have run on the shard that tells of it.
        """
        others = self._elsewhere(home)
        if others:
            for shard in [home, *others] if _answers(home) else others:
                try:
                    return await self._capture(shard, letters, ELSEWHERE_AFTER_S, stays=True)
                except StoreUnavailable as error:
                    if not error.certain:
                        raise
        return await self._capture(home, letters, stays=True)

    def _elsewhere(self, home: Shard) -> list[Shard]:
        """Return a shard of each other node that answers, any of its shards."""
        if not self._topology.is_cluster:
            return []
        of_node = {shard.route.primary: shard for shard in random.sample(self._shards, len(self._shards))}
        of_node.pop(home.route.primary, None)
        return [shard for shard in of_node.values() if _answers(shard)]

    async def _homes_of_before(self, letters: Sequence[NewLetter]) -> dict[int, int]:
        """Return the shards of letters that were captured in their homes of before a growth, by position.

        Asked for one window after it: then nobody remembers what was captured before.
        """
        asked: dict[int, list[int]] = {}
        for position, new in enumerate(letters):
            if new.movable or new.ordering_key:
                continue  # the engine's own id, or a home that growth does not move
            shards, home = self._layout.shards // 2, self.home_of(new)
            homes = set()
            while shards >= self._layout.home_shards:
                homes.add(_hash(new.capture_key) % shards)
                shards //= 2
            for old in homes - {home}:
                asked.setdefault(old, []).append(position)
        found: dict[int, int] = {}
        for old, positions in asked.items():
            for at in range(0, len(positions), BATCH):
                part = positions[at : at + BATCH]
                keys = [letters[position].capture_key for position in part]
                ids = await self._shards[old].recall(keys, window_ms=int(self._window_s * 1000))
                found |= {position: old for position, id in zip(part, ids, strict=True) if id is not None}
        return found


def _answers(shard: Shard) -> bool:
    """Whether there is no reason to think that the shard's node is away."""
    since = shard.route.away_since
    return since is None or monotonic() - since > AWAY_S


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
