"""A network between an engine and its servers that a test may harm: delays, cuts, silences, lost replies.

It runs on a thread and an event loop of its own, so that a test may block its loop. All random choices come
from a seed.
"""

import asyncio
import contextlib
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import redis
from redis.asyncio.cluster import RedisCluster

from uno.event_bus.dead_letter.store.connect import Address
from uno.event_bus.dead_letter.store.local_node import HOST
from uno.event_bus.dead_letter.store.scripts import script

CHUNK = 65_536


def _marks_of(verb: str) -> tuple[bytes, ...]:
    """What a request has in it that calls this script: either of its hashes, or its source."""
    called = script(verb)
    return called.sha.encode(), called.plain_sha.encode(), f"-- {verb}: ".encode()


class _Wire:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.silent = False
        """Nothing passes any more, in either direction; nobody is told."""
        self.loses_reply = False
        """The next bytes from the server are thrown away, and both ends closed."""

    def reset(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


def _nodes_of(url: str) -> list[Address]:
    """Where the server is; of a cluster, where its nodes are, as one of them tells."""
    if "cluster=true" not in url:
        parts = urlsplit(url)
        return [(parts.hostname or HOST, parts.port or 6379)]
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        rows = client.execute_command("CLUSTER SLOTS")
    return sorted({(host.decode(), port) for _, _, *nodes in rows for host, port, *_ in nodes})


class Proxy:
    """Passes everything on to the server of `target_url`, or to each node of a cluster, ``redis://…?cluster=true``.

    `redis` is what a queue is given to go this way.
    """

    def __init__(self, target_url: str, *, seed: int = 1) -> None:
        self._target_url = target_url
        self.fronts: dict[Address, Address] = {}
        """Node → where to go instead."""
        self._behind: dict[int, Address] = {}
        """The port of each front → its node."""
        self._random = random.Random(seed)
        self._folder = Path(tempfile.mkdtemp(prefix="uno-proxy-"))
        self.path = self._folder / "proxy.sock"
        self.url = f"unix://{self.path}"
        """Of one server's."""
        self.max_delay_s = 0.0
        """Each chunk, either way, waits for a random time up to this."""
        self.refusing = False
        """New connections are closed at once."""
        self.accepted = 0
        """Connections so far."""
        self.refused = 0
        """Calls that `refuse` had answered with an error, so far."""
        self.marks_of = _marks_of
        """How calls of a script are known; a run of a changed engine has its own way."""
        self._silence: Callable[[bytes], bool] = lambda chunk: False
        self._lose: tuple[str, int] = ("", 0)
        self._then_refuse = False
        self._refuse: tuple[str, bytes] | None = None
        self._wires: set[_Wire] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="proxy")
        self._started = threading.Event()

    @property
    def redis(self) -> str | RedisCluster:
        """The URL; of a cluster, a client whose nodes are reached this way."""
        return self.users_client() if self.fronts else self.url

    def users_client(self, **options: Any) -> Any:
        """A client as users of the engine build theirs."""
        if not self.fronts:
            return redis.asyncio.Redis(unix_socket_path=str(self.path), **options)
        host, port = next(iter(self.fronts.values()))
        return RedisCluster(host, port, address_remap=lambda address: self.fronts.get(address, address), **options)

    # -- strokes -------------------------------------------------------------------------------------

    def silence(self, verb: str = "") -> None:
        """From now on nothing passes on a connection on which this script is called (empty: on any connection).

        No end is closed: it is as if the network had gone.
        """
        self._silence = (lambda chunk: self._calls(chunk, verb)) if verb else (lambda chunk: True)
        if not verb:
            self._in_loop(self._silence_all)

    def _calls(self, chunk: bytes, verb: str) -> bool:
        return any(mark in chunk for mark in self.marks_of(verb))

    def _silence_all(self) -> None:
        for wire in self._wires:
            wire.silent = True

    def heal(self) -> None:
        """End what `silence` began; connections that were silent are reset."""
        self._silence = lambda chunk: False
        self._lose = ("", 0)
        self._refuse = None
        self.refusing = False
        self._in_loop(lambda: self._reset(lambda wire: wire.silent))

    def reset_all(self) -> None:
        """Reset every connection."""
        self._in_loop(lambda: self._reset(lambda wire: True))

    def _reset(self, chosen: Callable[[_Wire], bool]) -> None:
        for wire in list(self._wires):
            if chosen(wire):
                wire.reset()

    def lose_replies(self, verb: str, times: int, *, then_refuse: bool = False) -> None:
        """Lose the replies of the next calls of this script: the server does what they say, nobody hears of it.

        With `then_refuse`, all connections end with each of them, and new ones are refused.
        """
        self._then_refuse = then_refuse
        self._lose = (verb, times)

    def refuse(self, verb: str, marker: bytes) -> None:
        """Answer calls of this script that hold these bytes with an error, until it heals; the server hears nothing.

        As a server does that is set to take no such value.
        """
        self._refuse = (verb, marker)

    @property
    def replies_to_lose(self) -> int:
        """How many of those are still to come."""
        return self._lose[1]

    @property
    def open_connections(self) -> int:
        return len(self._wires)

    # -- life ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _in_loop(self, act: Callable[[], Any]) -> None:
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(20)

    async def _listen(self) -> list[asyncio.Server]:
        if self._target_url.startswith("unix:"):
            return [await asyncio.start_unix_server(self._connect, str(self.path))]
        servers = []
        for address in _nodes_of(self._target_url):
            servers.append(await asyncio.start_server(self._connect, HOST, 0))
            self.fronts[address] = servers[-1].sockets[0].getsockname()
            self._behind[self.fronts[address][1]] = address
        return servers

    async def _dial(self, client: asyncio.StreamWriter) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the node before which the client's connection has come in."""
        if not self.fronts:
            return await asyncio.open_unix_connection(urlsplit(self._target_url).path)
        return await asyncio.open_connection(*self._behind[client.get_extra_info("sockname")[1]])

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        servers = self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end(servers))
        self._loop.close()

    async def _end(self, servers: list[asyncio.Server]) -> None:
        """Close every socket, also those of connections that are just coming in, which no task of ours has seen."""
        for server in servers:
            server.close()
        await asyncio.sleep(0)  # what has been accepted gets its transport
        for server in servers:
            server.abort_clients()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # sockets are closed one turn after their transports

    async def _connect(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            client.transport.abort()
            return
        try:
            server_reader, server = await self._dial(client)
        except OSError:
            client.transport.abort()
            return
        except asyncio.CancelledError:  # the proxy ends
            client.transport.abort()
            raise
        wire = _Wire(client, server)
        self._wires.add(wire)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_requests(wire, client_reader))
                group.create_task(self._pass_replies(wire, server_reader))
        finally:
            self._wires.discard(wire)
            wire.reset()

    async def _pass_requests(self, wire: _Wire, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                wire.silent = wire.silent or self._silence(chunk)
                if wire.silent:
                    continue
                if self._refuse is not None and self._calls(chunk, self._refuse[0]) and self._refuse[1] in chunk:
                    self.refused += 1
                    await self._pass(b"-ERR value is refused\r\n", wire.client)
                    continue
                verb, times = self._lose
                if times and self._calls(chunk, verb):
                    self._lose = (verb, times - 1)
                    wire.loses_reply = True
                await self._pass(chunk, wire.server)
        wire.reset()

    async def _pass_replies(self, wire: _Wire, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                if wire.silent:
                    continue
                if wire.loses_reply:
                    if self._then_refuse:
                        self.refusing = True
                        self._reset(lambda wire: True)
                    break
                await self._pass(chunk, wire.client)
        if not wire.silent:
            wire.reset()

    async def _pass(self, chunk: bytes, to: asyncio.StreamWriter) -> None:
        if self.max_delay_s:
            await asyncio.sleep(self._random.random() * self.max_delay_s)
        to.write(chunk)
        await to.drain()
