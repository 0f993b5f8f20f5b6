"""Which node serves which slot: one node serves all of them, or the nodes of a cluster share them.

The map is a hint. A node that does not serve a slot says who does, and `Route` goes there; when a node does not
answer, the others are asked for the map anew. Each asked node tells what it believes: one that was cut off may
believe old things, so the node that just failed is asked last, and another one every time.
"""

import logging
import random
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

import anyio
from redis.exceptions import RedisError, ResponseError

from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.store.connect import Address, Seeds
from uno.event_bus.dead_letter.store.layout import SLOTS
from uno.event_bus.dead_letter.store.meaning import Meaning, classify, describe, refusal
from uno.event_bus.dead_letter.store.node import Node

__all__ = ["Topology"]

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 1.0
"""How long one node may take to tell the map."""

REFRESH_EVERY_S: Final = 0.1
"""The map is asked for at most this often, however many shards wish it."""


class Topology:
    """The nodes of a queue's Redis, and who serves which slot. Connects when it is first used."""

    def __init__(self, seeds: Seeds, *, timeout_s: float = 5.0, client_name: str = "uno-dlq") -> None:
        self.is_cluster = seeds.is_cluster
        """Whether nodes share the slots; one that was not said to be of a cluster may still tell so."""
        self._seeds = seeds
        self.timeout_s = timeout_s
        self._client_name = client_name
        self._nodes: dict[Address, Node] = {}
        self._readonly: dict[Address, Node] = {}
        self._primaries: list[Address | None] = [None] * SLOTS
        self._replicas: dict[Address, list[Address]] = {}
        """Primary → its replicas."""
        self._refreshing = anyio.Lock()
        self._refreshed_at = float("-inf")

    def __repr__(self) -> str:
        return f"Topology({', '.join(seed.name for seed in self._seeds.targets)})"

    async def close(self) -> None:
        """Close every connection."""
        for node in [*self._nodes.values(), *self._readonly.values()]:
            await node.close()
        self._nodes.clear()
        self._readonly.clear()

    # -- nodes ---------------------------------------------------------------------------------------

    def node(self, address: Address) -> Node:
        """Return the node at an address, whether or not the map has it: a redirect may name a new one."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._made(address)
        return node

    def _made(self, address: Address, *, readonly: bool = False) -> Node:
        seeds = self._seeds.targets
        target = next((seed for seed in seeds if seed.address == address), None) or seeds[0].at(address)
        return Node(target, timeout_s=self.timeout_s, client_name=self._client_name, readonly=readonly)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that there are connections to."""
        return list(self._nodes.values())

    @property
    def primaries(self) -> list[Node]:
        """The nodes that serve slots; of one server, that one."""
        addresses = dict.fromkeys(address for address in self._primaries if address is not None)
        return [self.node(address) for address in addresses or [self._seeds.targets[0].address]]

    def primary(self, slot: int) -> Node:
        """Return the node that serves a slot; one that may know when the map does not tell."""
        return self.node(self._primaries[slot] or self._seeds.targets[0].address)

    def replica(self, slot: int) -> Node | None:
        """Return a replica of the slot's primary, another one each time, for reads that decide nothing."""
        primary = self._primaries[slot]
        if primary is None or not self._replicas.get(primary):
            return None
        address = random.choice(self._replicas[primary])
        if address not in self._readonly:
            self._readonly[address] = self._made(address, readonly=True)
        return self._readonly[address]

    # -- the map -------------------------------------------------------------------------------------

    def moved(self, slot: int, address: Address, teller: Node) -> Node:
        """Note that a slot is served elsewhere, as a node has told; return the node that serves it."""
        self.is_cluster = True
        self._primaries[slot] = self._reachable(address, teller)
        return self.primary(slot)

    def told(self, address: Address, teller: Node) -> Node:
        """Return the node that another one has named."""
        return self.node(self._reachable(address, teller))

    def _reachable(self, address: Address, teller: Node) -> Address:
        host = address[0] if address[0] not in ("", "?") else teller.target.address[0]
        return self._seeds.remap((host, address[1]))

    async def open(self) -> None:
        """Read the map of a cluster; nothing to do for one server. Raises what `refresh` answers."""
        if self.is_cluster and not any(self._primaries):
            failure = await self.refresh()
            if failure is not None:
                raise failure

    async def refresh(self, failed: Node | None = None) -> Exception | None:
        """Ask for the map anew, `failed` last; return what was wrong when no node has told it.

        Callers at the same time share one round; of many in a row only some ask.
        """
        if not self.is_cluster:
            return None
        began = monotonic()
        async with self._refreshing:
            if began < self._refreshed_at + REFRESH_EVERY_S:
                return None
            failure = await self._ask(self._asked(failed))
            self._refreshed_at = monotonic()
            return failure

    def _asked(self, failed: Node | None) -> list[Node]:
        """Return all nodes that may tell the map, in the order of asking."""
        known = {*self._nodes, *(address for replicas in self._replicas.values() for address in replicas)}
        order = random.sample(sorted(known), len(known))
        order += [seed.address for seed in self._seeds.targets if seed.address not in known]
        last = failed.target.address if failed is not None else None
        return [self.node(address) for address in sorted(order, key=lambda address: address == last)]

    async def _ask(self, nodes: Iterable[Node]) -> Exception | None:
        failure: Exception | None = None
        for node in nodes:
            try:
                with anyio.fail_after(ASK_TIMEOUT_S):
                    reply = await node.send("CLUSTER", "SLOTS", lane="heartbeats")
            except (RedisError, OSError, TypeError, AttributeError, RuntimeError) as error:
                if classify(error) in (Meaning.FATAL, Meaning.LOCKED_OUT):
                    failure = refusal(error, node.target.name)
                    if not isinstance(error, ResponseError) or "cluster support disabled" in str(error):
                        return failure
                else:
                    failure = StoreUnavailable(f"{describe(error)} at {node.target.name}", certain=True)
                continue
            if reply:
                await self._take_over(reply, node)
                return None
            failure = StoreUnavailable(f"no slot is served, says {node.target.name}", certain=True)
        return failure

    async def _take_over(self, reply: list[Any], teller: Node) -> None:
        """Replace the map by a reply of CLUSTER SLOTS: rows of first slot, last slot, primary, replicas."""
        primaries: list[Address | None] = [None] * SLOTS
        replicas: dict[Address, list[Address]] = {}
        for first, last, *servers in reply:
            primary, *others = [
                self._reachable(((host or b"").decode(), int(port)), teller) for host, port, *_ in servers
            ]
            primaries[first : last + 1] = [primary] * (last + 1 - first)
            replicas[primary] = others
        if primaries != self._primaries:
            logger.debug("%d primaries serve the slots, says %s", len(replicas), teller.target.name)
        self._primaries, self._replicas = primaries, replicas
        known = {*replicas, *(address for others in replicas.values() for address in others)}
        for nodes, wanted in ((self._nodes, known), (self._readonly, known - replicas.keys())):
            for address in nodes.keys() - wanted:
                await nodes.pop(address).retire()
