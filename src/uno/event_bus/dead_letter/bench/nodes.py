"""What the servers say of themselves: who they are, their roles, and the CPU that they have used."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import anyio

from uno.event_bus.dead_letter.store.node import Node
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["NodeState", "cpu_used_s", "looked_at"]

PATIENCE_S: Final = 2.0
"""With one node; one that is away is left out."""


class NodeState(NamedTuple):
    """One server at one moment."""

    address: str
    role: str
    server: str
    """``valkey 9.1.2``."""
    run_id: str
    """Another one after each start."""
    cpu_s: float | None
    """User and system time since its start; None where the server hides it."""


async def looked_at(store: Store) -> dict[str, NodeState]:
    """Return all nodes that answer, by address: primaries in the order of their slots, then replicas."""
    found: dict[str, NodeState] = {}
    for node in await _nodes(store):
        with anyio.move_on_after(PATIENCE_S), suppress(Exception):  # away, or forbidden: the figures say so
            found[node.target.name] = _state(node, (await node.send("INFO", lane="heartbeats")).decode())
    return found


async def _nodes(store: Store) -> list[Node]:
    """Return all nodes; of a server that is no cluster, that one."""
    topology = store.topology
    for teller in topology.primaries if topology.is_cluster else []:
        with anyio.move_on_after(PATIENCE_S), suppress(Exception):  # as above: the next one is asked
            rows: list[Any] = await teller.send("CLUSTER", "SLOTS", lane="heartbeats")
            groups = [[_named(store, server, teller) for server in servers] for _, _, *servers in sorted(rows)]
            known = {node.target.name: node for node in [each[0] for each in groups]}
            known |= {node.target.name: node for each in groups for node in each[1:]}
            return list(known.values())
    return topology.primaries


def _named(store: Store, server: Sequence[Any], teller: Node) -> Node:
    host, port = server[0] or b"", int(server[1])
    return store.topology.told((host.decode(), port), teller)


def _state(node: Node, info: str) -> NodeState:
    told = dict(re.findall(r"^(\w+):(.*?)\r?$", info, re.MULTILINE))
    name, version = told.get("server_name", "redis"), told.get("valkey_version") or told.get("redis_version", "")
    used = [float(told[each]) for each in ("used_cpu_user", "used_cpu_sys") if each in told]
    return NodeState(
        address=node.target.name,
        role="replica" if told.get("role") == "slave" else "primary",
        server=f"{name} {version}".strip(),
        run_id=told.get("run_id", ""),
        cpu_s=sum(used) if used else None,
    )


def cpu_used_s(states: Sequence[NodeState | None]) -> float | None:
    """Return the CPU that a node has used from the first look to the last, seconds; None when that is not known.

    One that was started anew in between counts from there; what it used after the look before that is not known.
    """
    used, before = 0.0, None
    for state in states:
        if state is None or state.cpu_s is None:
            continue
        if before is not None:
            used += state.cpu_s - (before.cpu_s or 0.0) if state.run_id == before.run_id else state.cpu_s
        before = state
    return used if before is not None else None
