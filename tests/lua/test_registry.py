"""enlist, resign, roster: who lives is known, who falls silent is forgotten, a later protocol is left alone."""

from typing import Any

import anyio
import pytest

from tests.support.servers import Server
from uno.event_bus.dead_letter.errors import LayoutMismatch
from uno.event_bus.dead_letter.store.layout import queue_key
from uno.event_bus.dead_letter.store.registry import Registry, WorkerInfo
from uno.event_bus.dead_letter.store.topology import Topology

LONG_MS = 60_000


@pytest.fixture
def registry(topology: Topology) -> Registry:
    return Registry(topology, "orders")


async def test_who_enlists_learns_of_all_that_live(registry: Registry) -> None:
    """Itself among them; enlisting again changes nothing."""
    assert (await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)).workers == ["a"]
    for _ in range(2):
        enlisted = await registry.enlist(WorkerInfo("b", "host", 7, 1.5, 100, (0, 2), 3), ttl_ms=LONG_MS + 1000)
        assert enlisted.workers == ["a", "b"]
    assert await registry.roster() == [WorkerInfo("a"), WorkerInfo("b", "host", 7, 1.5, 100, (0, 2), 3)]


async def test_who_falls_silent_is_forgotten(registry: Registry, server: Server) -> None:
    """The roster leaves it out at once; the next one that enlists removes both of its rows."""
    await registry.enlist(WorkerInfo("a"), ttl_ms=1)
    await anyio.sleep(0.01)
    assert await registry.roster() == []
    assert (await registry.enlist(WorkerInfo("b"), ttl_ms=LONG_MS)).workers == ["b"]
    assert server.client.hkeys(queue_key("orders", "worker_info")) == [b"b"]


@pytest.mark.parametrize("until", ["inf", 10**15], ids=str)
async def test_who_says_to_live_for_ever_is_forgotten(registry: Registry, server: Server, until: Any) -> None:
    """A stranger's row, or one from before the clock went back: it would have shards, and nobody would serve them."""
    server.client.zadd(queue_key("orders", "workers"), {"ghost": until})
    assert (await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)).workers == ["a"]


async def test_who_resigns_is_struck_off(registry: Registry) -> None:
    """Doing so again answers that there was nobody."""
    await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)
    assert [await registry.resign("a"), await registry.resign("a")] == [True, False]
    assert await registry.roster() == []


async def test_the_epoch_of_the_layout_is_told(registry: Registry, server: Server) -> None:
    """None while there is no record."""
    assert (await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)).epoch is None
    server.client.hset(queue_key("orders", "layout"), "epoch", 3)
    assert (await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)).epoch == 3


@pytest.mark.parametrize("info", ["", "{", "[1]", '{"worker": 7}', "\xff"])
async def test_a_strangers_row_is_a_worker_that_tells_nothing(registry: Registry, server: Server, info: Any) -> None:
    """Bad rows stop nobody."""
    await registry.enlist(WorkerInfo("a"), ttl_ms=LONG_MS)
    server.client.hset(queue_key("orders", "worker_info"), "a", info)
    assert await registry.roster() == [WorkerInfo("a")]


async def test_a_later_protocol_is_left_alone(registry: Registry, server: Server) -> None:
    """Each verb refuses before it writes."""
    server.client.hset(queue_key("orders", "layout"), "protocol", 2)
    for call in (registry.enlist(WorkerInfo("a"), ttl_ms=1), registry.resign("a"), registry.roster()):
        with pytest.raises(LayoutMismatch):
            await call
    assert server.client.exists(queue_key("orders", "workers")) == 0
