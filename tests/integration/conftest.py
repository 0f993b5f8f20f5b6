"""Queues on a server or a cluster, each of which must be clean, and leave nothing behind, when its test ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.kills import Kills
from tests.support.places import Place
from tests.support.servers import Server
from tests.support.spools import spool_files
from tests.support.waiting import eventually
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.spool.folder import Folder

SETTINGS: dict[str, Any] = {"shards": 2, "retry_delay": 0.02, "operation_timeout": 10.0, "shutdown_grace": 5.0}
"""What tests say unless they say otherwise: few shards, soon again, patience with a server that gets no core."""


class Queues:
    """Makes queues on the test's place; `lost_externally` is what the test itself takes from them."""

    def __init__(self, place: Place, **settings: Any) -> None:
        self.place = place
        self._settings = SETTINGS | settings
        self.lost_externally = 0
        self._made: list[DeadLetterQueue] = []
        self._of_others: set[str] = set()
        self._of_others = {row["id"] for row in self._rows()}

    def _rows(self) -> list[dict[str, str]]:
        return [
            row
            for row in self.place.connections()
            if row["name"].startswith("uno-dlq") and row["id"] not in self._of_others
        ]

    def __call__(
        self, redis: Any = None, *, recorder: Any = None, tracer_provider: Any = None, **settings: Any
    ) -> DeadLetterQueue:
        config = DeadLetterConfig(**(self._settings | settings))
        source = self.place.url if redis is None else redis
        made = DeadLetterQueue(source, config, recorder=recorder, tracer_provider=tracer_provider)
        self._made.append(made)
        return made

    def connections(self) -> list[str]:
        """What the nodes say of each connection that the engine has."""
        return [f"{row['name']} {row['cmd']}" for row in self._rows()]

    async def close(self) -> None:
        """Close what was made; check the letters of each queue, and that no connection is left."""
        names = {(made.config.queue, made.config.shards): made for made in self._made}
        for made in self._made:
            await made.aclose()
        await eventually(lambda: not self.connections(), what=f"connections are left: {self.connections()}")
        lost = 0
        for name, shards in names:
            async with DeadLetterQueue(
                self.place.url, DeadLetterConfig(queue=name, shards=shards, enabled=False)
            ) as queue:
                report = await queue.verify()
            assert report.clean, report
            lost += report.lost_externally
        assert lost == self.lost_externally


@pytest.fixture
async def queues(place: Place) -> AsyncIterator[Queues]:
    """Make queues: ``queues(lease_seconds=1, …)``. At the end: `verify`, no connection and no task left."""
    async with queues_on(place) as made:
        yield made


@asynccontextmanager
async def queues_on(place: Place, **settings: Any) -> AsyncGenerator[Queues]:
    """The same on a place of the test's own, or with settings that it always says."""
    made = Queues(place, **settings)
    yield made
    await made.close()
    await eventually(lambda: not _tasks(), what=f"tasks are left: {_tasks()}")


@pytest.fixture
def stoppable(server: Server) -> Iterator[Server]:
    """A server that may be stopped and started; it keeps what it has acknowledged.

    Its log is written before it answers, so that no end of the process loses any of it; no disk is waited for.
    """
    with Server(server.name, "--appendonly", "yes", "--appendfsync", "no") as made:
        yield made


@pytest.fixture
async def spooling(stoppable: Server, tmp_path: Path) -> AsyncIterator[Queues]:
    """Queues on it that share one spool, ``tmp_path / "spool"``; at the end that is empty."""
    async with queues_on(stoppable, spool_dir=str(tmp_path / "spool"), operation_timeout=0.5) as made:
        yield made
    heir = Folder(str(tmp_path / "spool"), "default", 10_000)  # a process that was killed leaves its lock file
    assert heir.adopt() == 0
    heir.close()
    assert spool_files(tmp_path) == []


@pytest.fixture
def limit_memory(place: Place) -> Iterator[Callable[[str], None]]:
    """Set ``maxmemory``. Without `allow-oom` a full server may refuse the verbs that drain: not on Redis 6.2."""
    if place.version < (7, 0):
        pytest.skip("Redis 6.2 refuses the verbs that drain on a full server")

    def limit(most: str) -> None:
        for client in place.clients():
            client.config_set("maxmemory", most)

    yield limit
    limit("0")


def _tasks() -> list[asyncio.Task[Any]]:
    """The tasks of this loop that are not the test runner's own."""
    return [task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())]


@pytest.fixture
def kills(server: Server, tmp_path: Path) -> Iterator[Kills]:
    """A queue, worker processes on it, and the check of all promises at the end."""
    with Kills(server, tmp_path) as made:
        yield made
