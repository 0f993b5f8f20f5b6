"""Networks that a run may harm: proxies before nodes, and a network of the run's own whose nodes can be cut off."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self, override

from tests.support.clusters import Cluster
from tests.support.proxy import CHUNK, Proxy, _is_call, _Wire
from uno.event_bus.dead_letter.store.local_node import HOST, LocalNode

__all__ = ["CuttableCluster", "Wire", "Wires", "own_network"]


class Wire(Proxy):
    """A proxy that also holds calls up, and cuts connections in the middle of what they carry."""

    def __init__(self, target_url: str, *, seed: int = 1) -> None:
        super().__init__(target_url, seed=seed)
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
        if self._held and _is_call(chunk, self._held):
            self.holding += 1
            await self._released.wait()
            self.holding -= 1
        if self.halves and self._random.random() < self.halves:
            await super()._pass(chunk[: len(chunk) // 2], to)
            to.transport.abort()
            raise ConnectionResetError
        await super()._pass(chunk, to)


class _NodeWire(Wire):
    """A wire to a node of a cluster, over TCP."""

    def __init__(self, node: LocalNode, *, seed: int = 1) -> None:
        super().__init__("unix://none", seed=seed)
        self._node_port = node.port
        self.port = 0

    @override
    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, HOST, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for wire in list(self._wires):
            wire.reset()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    @override
    async def _connect(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            assert not self.refusing
            server_reader, server = await asyncio.open_connection(HOST, self._node_port, limit=CHUNK)
        except (OSError, AssertionError):
            client.transport.abort()
            return
        wire = _Wire(client, server)
        self._wires.add(wire)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_requests(wire, client_reader))
                group.create_task(self._pass_replies(wire, server_reader))
        finally:
            self._wires.discard(wire)
            wire.reset()


class Wires:
    """A wire before each node of a cluster; `remap` is for the clients that go through them."""

    def __init__(self, cluster: Cluster, *, seed: int = 1) -> None:
        self._wires = {node.port: _NodeWire(node, seed=seed + i) for i, node in enumerate(cluster.nodes)}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for wire in self._wires.values():
            self._stack.enter_context(wire)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def remap(self) -> dict[str, str]:
        return {f"{HOST}:{port}": f"{HOST}:{wire.port}" for port, wire in self._wires.items()}

    def all(self) -> list[_NodeWire]:
        return list(self._wires.values())

    def to(self, node: LocalNode) -> _NodeWire:
        return self._wires[node.port]


# -- a network of one's own -------------------------------------------------------------------------------


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
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)


class CuttableCluster(Cluster):
    """A cluster in `own_network` whose nodes have an address each: a node without its address is cut off.

    Its clients go to ``127.0.0.1`` instead (`REMAP`), so they still reach it.
    """

    REMAP = {"*:*": HOST}

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, options=("--bind", "0.0.0.0", "--protected-mode", "no"), **options)
        self._addresses: dict[int, str] = {}

    @override
    def _start_node(self) -> LocalNode:
        node = super()._start_node()
        address = f"10.9.0.{10 + len(self._addresses)}"
        self._addresses[node.port] = address
        _ip("addr", "add", f"{address}/32", "dev", "lo")
        node.client.config_set("cluster-announce-ip", address)
        node.client.config_set("bind-source-addr", address)
        return node

    def address_of(self, node: LocalNode) -> str:
        """As the other nodes, and clients, hear it."""
        return f"{self._addresses[node.port]}:{node.port}"

    def cut_off(self, node: LocalNode) -> None:
        """No node reaches this one, nor it any other; nobody is told."""
        _ip("addr", "del", f"{self._addresses[node.port]}/32", "dev", "lo")

    def join(self, node: LocalNode) -> None:
        """End that."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("addr", "add", f"{self._addresses[node.port]}/32", "dev", "lo")
