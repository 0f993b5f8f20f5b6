"""Networks that a run may harm: proxies before nodes, and a network of the run's own whose nodes can be cut off."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self, override

from tests.support.clusters import Cluster
from tests.support.harness.actors import ROOT
from tests.support.proxy import Proxy
from uno.event_bus.dead_letter.store import scripts
from uno.event_bus.dead_letter.store.local_node import HOST, LocalNode

__all__ = ["CuttableCluster", "Wire", "Wires", "own_network"]


@cache
def _marks_in(folder: Path, verb: str) -> tuple[bytes, ...]:
    """What a request has in it that calls the script of this folder."""
    path = folder / f"{verb}.lua"
    lines = scripts._expand(path, folder, (path,))
    hashes = [hashlib.sha1("\n".join(part).encode(), usedforsecurity=False) for part in (lines, lines[1:])]
    return *(found.hexdigest().encode() for found in hashes), f"-- {verb}: ".encode()


class Wire(Proxy):
    """A proxy that also holds calls up, and cuts connections in the middle of what they carry.

    `tree` is the checkout whose scripts are called through it.
    """

    def __init__(self, target_url: str, *, seed: int = 1, tree: Path = ROOT) -> None:
        super().__init__(target_url, seed=seed)
        self.marks_of = partial(_marks_in, tree / "lua")
        self.halves = 0.0
        """Probability that a chunk, either way, passes by half, and the connection is reset then."""
        self._held = ""
        self._released = asyncio.Event()
        self.holding = 0
        """Calls that are held up now."""

    def hold(self, verb: str) -> None:
        """From now on calls of this script wait on the way to the server until `release`."""
        self._released = asyncio.Event()
        self._held = verb

    def release(self) -> None:
        """Let them arrive."""
        self._held = ""
        self._in_loop(self._released.set)

    @override
    async def _pass(self, chunk: bytes, to: asyncio.StreamWriter) -> None:
        if self._held and self._calls(chunk, self._held):
            self.holding += 1
            await self._released.wait()
            self.holding -= 1
        if self.halves and self._random.random() < self.halves:
            await super()._pass(chunk[: len(chunk) // 2], to)
            to.transport.abort()
            raise ConnectionResetError
        await super()._pass(chunk, to)


class Wires:
    """A wire before each node of a cluster; `remap` is for the clients that go through them."""

    def __init__(self, cluster: Cluster, *, seed: int = 1) -> None:
        self._wires = {
            node.port: Wire(f"redis://{HOST}:{node.port}/0", seed=seed + i) for i, node in enumerate(cluster.nodes)
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for wire in self._wires.values():
            self._stack.enter_context(wire)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def remap(self) -> dict[str, str]:
        ways = [way for wire in self._wires.values() for way in wire.fronts.items()]
        return {f"{host}:{port}": f"{front}:{front_port}" for (host, port), (front, front_port) in ways}

    def all(self) -> list[Wire]:
        return list(self._wires.values())

    def to(self, node: LocalNode) -> Wire:
        return self._wires[node.port]


# -- a network of one's own -------------------------------------------------------------------------------


UNBOUND = "10.9.0.250"
"""Source of the connections to a node's address that were bound to none."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace of its own; needs root. `PermissionError` without."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        os.unshare(os.CLONE_NEWNET)
        try:
            _ip("link", "set", "lo", "up")
            # Addresses of the machine itself are looked up first of all, else: no rule could come before.
            _ip("rule", "add", "pref", "100", "lookup", "local")
            _ip("rule", "del", "pref", "0")
            _ip("addr", "add", f"{UNBOUND}/32", "dev", "lo")
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)


class CuttableCluster(Cluster):
    """A cluster in `own_network` whose nodes have an address each, so that one can be cut off.

    Its clients go to ``127.0.0.1`` instead (`REMAP`), so they still reach it.
    """

    REMAP: ClassVar = {"*:*": HOST}

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, options=("--bind", "0.0.0.0", "--protected-mode", "no"), **options)
        self._addresses: dict[int, str] = {}

    @override
    def _start_node(self) -> LocalNode:
        node = super()._start_node()
        address = f"10.9.0.{10 + len(self._addresses)}"
        self._addresses[node.port] = address
        _ip("addr", "add", f"{address}/32", "dev", "lo")
        _ip("route", "replace", "local", f"{address}/32", "dev", "lo", "table", "local", "src", UNBOUND)
        node.client.config_set("cluster-announce-ip", address)
        node.client.config_set("bind-source-addr", address)
        return node

    def address_of(self, node: LocalNode) -> str:
        """As the other nodes, and clients, hear it."""
        return f"{self._addresses[node.port]}:{node.port}"

    def cut_off(self, node: LocalNode) -> None:
        """No node reaches this one, nor it any other; nobody is told."""
        for rule in self._rules(node):
            _ip("rule", "add", "pref", "10", *rule, "blackhole")

    def join(self, node: LocalNode) -> None:
        """End that."""
        for rule in self._rules(node):
            _ip("rule", "del", "pref", "10", *rule, "blackhole")

    def _rules(self, node: LocalNode) -> list[tuple[str, str]]:
        # A node that cannot connect from its own address tries again from any.
        address = self._addresses[node.port]
        return [("from", address), ("to", address), ("from", UNBOUND)]
