"""Where the benchmark runs: the user's server or one of its own, and a queue of its own; what it makes, it removes."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import anyio

from uno.event_bus.dead_letter.bench.errors import QueueTaken
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, QueueNotFound
from uno.event_bus.dead_letter.operations import Operations
from uno.event_bus.dead_letter.rig.queue import erase_queue, new_name
from uno.event_bus.dead_letter.rig.server import running, temporary_server
from uno.event_bus.dead_letter.rules import redact_url
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.durability import flags_for
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import DEFAULT_SHARDS, Store

__all__ = ["Place", "own_queue", "place_of"]


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
    flags = flags_for(options.config("any"))
    if options.cluster:
        cluster = LocalCluster(appendonly=True, options=flags)
        async with running(cluster):
            yield Place(cluster.url, "cluster", cluster.url, cluster)
    elif url is None:
        async with temporary_server("uno-bench-", *flags) as embedded:
            yield Place(embedded.url, "embedded", "embedded:")
    elif url.startswith("embedded:"):
        embedded = EmbeddedServer.from_url(url, options=flags)
        async with running(embedded):
            yield Place(embedded.url, "given", url)
    else:
        seeds_of(url)
        yield Place(url, "given", redact_url(url))


@asynccontextmanager
async def own_queue(
    place: Place, options: Options, say: Callable[[str], None]
) -> AsyncGenerator[tuple[DeadLetterConfig, Store]]:
    """Give a queue that nobody had, its settings and its store, open; remove that queue's keys at the end.

    Raises `QueueTaken` for one that exists, with or without letters: its totals and its workers are somebody's.
    """
    config = options.config(options.queue or new_name("bench"))
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
        if not may_be_there:
            with anyio.CancelScope(shield=True):
                await store.close()
        elif why := await erase_queue(store):
            say(f"the keys dlq:{{{config.queue}…}}:* are left on the server: {why}")


async def _refuse_taken(place: Place, config: DeadLetterConfig) -> None:
    """Raise `QueueTaken` if the queue has been made, or holds letters all the same: any client may write some."""
    any_layout = DeadLetterConfig(queue=config.queue, operation_timeout=config.operation_timeout)
    store = Store(seeds_of(place.url), any_layout)
    try:
        try:
            await store.open(make=False)
        except QueueNotFound:
            shards = range(config.shards or DEFAULT_SHARDS)
            rows = [await browse.stats(Shard(config.queue, i, store.topology, store.layout)) for i in shards]
            if letters := sum(int(row["open"] or 0) for row in rows):
                raise QueueTaken(config.queue, letters) from None
        else:
            raise QueueTaken(config.queue, (await Operations(store).stats()).open)
    finally:
        await store.close()
