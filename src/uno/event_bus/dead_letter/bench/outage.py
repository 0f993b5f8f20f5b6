"""The outage: a primary of a cluster of our own is killed while captures and handlers are at work, and started again.

It is started only when its replica has taken over, which is what is measured.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.bench.errors import BenchFailed
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster, LocalNode
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Outage", "kill_primary"]

TRY_S: Final = 0.2
"""One question whether a shard answers takes so long at most: the figure is as exact as that."""

AGAIN_S: Final = 0.02
TAKES_OVER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Outage:
    """What was killed, and when it was made up for; moments by the machine's monotonic clock, seconds."""

    address: str
    pid: int
    shards: list[int]
    """Those that it served."""
    killed_s: float
    answered_s: float
    """All of its shards answered again."""
    restarted_s: float
    captured_by_then: dict[int, int]
    """Shard → letters captured, as the new primary first told."""


async def kill_primary(
    cluster: LocalCluster, config: DeadLetterConfig, seed: int, before_it: Callable[[], Awaitable[object]]
) -> Outage:
    """Kill the primary of a shard, which the seed chooses, and start it again when a replica has taken over.

    Raises `BenchFailed` when none does within 30 s.
    """
    store = Store(seeds_of(cluster.url), replace(config, operation_timeout=TRY_S), client_name="uno-dlq-bench-outage")
    try:
        await store.open()
        node, shards = await _victim(cluster, store, seed)
        address, pid = f"127.0.0.1:{node.port}", node.pid
        await before_it()
        killed_s = monotonic()
        await anyio.to_thread.run_sync(node.kill)
        answers: dict[int, tuple[float, int]] = {}

        async def ask(shard: Shard) -> None:
            answers[shard.index] = await _answer(shard)

        with anyio.move_on_after(TAKES_OVER_S):
            async with anyio.create_task_group() as group:
                for shard in shards:
                    group.start_soon(ask, shard)
        if len(answers) < len(shards):
            raise BenchFailed(f"no replica has taken over from {address} within {TAKES_OVER_S:g} s")
        answered_s = max(at_s for at_s, _ in answers.values())
        await anyio.to_thread.run_sync(node.start)
        captured = {index: count for index, (_, count) in answers.items()}
        return Outage(address, pid, sorted(answers), killed_s, answered_s, monotonic(), captured)
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


async def _victim(cluster: LocalCluster, store: Store, seed: int) -> tuple[LocalNode, list[Shard]]:
    """Return the primary of a shard, and all shards that it serves."""
    chosen = store.shards[seed % len(store.shards)]
    node = await anyio.to_thread.run_sync(cluster.primary_of, chosen.route.slot)
    return node, [shard for shard in store.shards if shard.route.primary.target.address[1] == node.port]


async def _answer(shard: Shard) -> tuple[float, int]:
    """Return when the shard answered, and how many letters it had captured."""
    while True:
        try:
            told = await browse.stats(shard)
        except StoreUnavailable:
            await anyio.sleep(AGAIN_S)
        else:
            return monotonic(), int(told.get("captured") or 0)
