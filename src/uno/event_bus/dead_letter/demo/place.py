"""Where the demo runs: a server and a queue of its own, both gone afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.demo.plan import SHARDS
from uno.event_bus.dead_letter.errors import QueueNotFound
from uno.event_bus.dead_letter.rig.queue import erase_queue, new_name
from uno.event_bus.dead_letter.rig.server import temporary_server
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["own_queue", "server"]


@asynccontextmanager
async def server(url: str | None) -> AsyncIterator[str]:
    """Give the address of a Redis: the given one, or a server that lives as long as the demo."""
    if url is not None:
        yield url
        return
    async with temporary_server("uno-demo-") as embedded:
        yield f"embedded://{embedded.directory.as_posix()}"


@asynccontextmanager
async def own_queue(address: str) -> AsyncIterator[str]:
    """Give a name that no other queue has, and remove that queue's keys at the end.

    A Redis that has gone away keeps them; why it went is what the caller has to hear. Raises what opening a queue does
    where there is no Redis, or none that is fit.
    """
    queue = new_name("demo")
    if address.startswith("embedded:"):
        yield queue
        return
    store = Store(seeds_of(address), DeadLetterConfig(queue=queue, shards=SHARDS))
    try:
        with suppress(QueueNotFound):
            await store.open(make=False)
    except BaseException:
        await store.close()
        raise
    try:
        yield queue
    finally:
        await erase_queue(store)
