"""Where the benchmark runs: the user's server or one of its own, and a queue of its own; what it makes, it removes."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.operations import Operations
from uno.event_bus.dead_letter.rules import redact_url
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.layout import queue_key, slot_of
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster
from uno.event_bus.dead_letter.store.route import Route
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Place", "QueueTaken", "own_queue", "place_of"]

CLEANING_S: Final = 10.0
"""Longest time to remove the queue's keys, seconds."""


class QueueTaken(DeadLetterError):
    """The queue that was named is somebody's: the benchmark would run its letters, and erase it."""

    code = "queue_taken"

    def __init__(self, queue: str, letters: int) -> None:
        self.queue = queue
        self.letters = letters
        super().__init__(
            f"queue {queue!r} exists and holds {letters:,} letters: a benchmark erases its queue, so it takes only a "
            "new one; leave --queue out"
        )


@dataclass(frozen=True, slots=True)
class Place:
    """The servers."""

    url: str
    """As processes connect to it."""
    kind: Literal["given", "embedded", "cluster"]
    name: str
    """For people and programs; never a password."""
    cluster: LocalCluster | None = None

    @property
    def is_own(self) -> bool:
        """Whether it goes away with the benchmark."""
        return self.kind != "given"


@asynccontextmanager
async def place_of(options: Options) -> AsyncGenerator[Place]:
    """Give the servers: those of the user, or some that live as long as the body."""
    url = options.given_url()
    if options.cluster:
        cluster = LocalCluster(appendonly=True)
        async with _in_thread(cluster.start, cluster.stop):
            yield Place(cluster.url, "cluster", cluster.url, cluster)
    elif url is None:
        directory = Path(tempfile.mkdtemp(prefix="uno-bench-"))
        embedded = EmbeddedServer(directory)

        def stop() -> None:
            embedded.stop()
            shutil.rmtree(directory, ignore_errors=True)

        async with _in_thread(embedded.start, stop):
            yield Place(embedded.url, "embedded", "embedded:")
    elif url.startswith("embedded:"):
        embedded = EmbeddedServer.from_url(url)
        async with _in_thread(embedded.start, embedded.stop):
            yield Place(embedded.url, "given", url)
    else:
        seeds_of(url)
        yield Place(url, "given", redact_url(url))


@asynccontextmanager
async def _in_thread(start: Callable[[], object], stop: Callable[[], object]) -> AsyncGenerator[None]:
    """Call what blocks in a thread: the second function also when the first, or the body, was interrupted."""
    try:
        await anyio.to_thread.run_sync(start)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(stop)


@asynccontextmanager
async def own_queue(
    place: Place, options: Options, say: Callable[[str], None]
) -> AsyncGenerator[tuple[DeadLetterConfig, Store]]:
    """Give a queue that nobody had, its settings and its store, open; remove that queue's keys at the end.

    Raises `QueueTaken` for one that exists, with or without letters: its totals and its workers are somebody's.
    """
    config = options.config(options.queue or f"bench-{secrets.token_hex(4)}")
    if options.queue is not None:
        await _refuse_taken(place, config)
    store = Store(seeds_of(place.url), config, client_name="uno-dlq-bench")
    may_be_there = not place.is_own
    try:
        try:
            await store.open()
        except DeadLetterError as error:
            may_be_there = may_be_there and not getattr(error, "certain", True)
            raise
        yield config, store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()
            if may_be_there:
                await _erase(place, config, say)


async def _refuse_taken(place: Place, config: DeadLetterConfig) -> None:
    store = Store(seeds_of(place.url), DeadLetterConfig(queue=config.queue, operation_timeout=config.operation_timeout))
    try:
        await store.topology.open()
        # Opening the store would make the queue.
        route = Route(store.topology, slot_of(config.queue), config.queue)
        if await route.send("EXISTS", queue_key(config.queue, "layout"), lane="commands"):
            raise QueueTaken(config.queue, (await Operations(store).stats()).open)
    finally:
        await store.close()


async def _erase(place: Place, config: DeadLetterConfig, say: Callable[[str], None]) -> None:
    """Remove the queue; what that fails with is told, and does not hide why the benchmark ended."""
    store = Store(seeds_of(place.url), config)
    why = f"it took longer than {CLEANING_S:g} s"
    try:
        with anyio.move_on_after(CLEANING_S):
            await store.erase()
            return
    except Exception as error:
        why = str(error)
    finally:
        await store.close()
    say(f"the keys dlq:{{{config.queue}…}}:* are left on the server: {why}")
