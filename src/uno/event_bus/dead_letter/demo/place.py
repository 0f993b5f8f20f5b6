"""Where the demo runs: a server and a queue of its own, both gone afterwards."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.demo.plan import SHARDS
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["own_queue", "server"]

CLEANING_S: Final = 5.0
"""Longest time to remove the queue's keys, seconds."""


@asynccontextmanager
async def server(url: str | None) -> AsyncIterator[str]:
    """Give the address of a Redis: the given one, or a server that lives as long as the demo."""
    if url is not None:
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="uno-demo-"))
    embedded = EmbeddedServer(directory)
    try:
        await anyio.to_thread.run_sync(embedded.start)
        yield f"embedded://{directory.as_posix()}"
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(embedded.stop)
            await anyio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))


@asynccontextmanager
async def own_queue(address: str) -> AsyncIterator[str]:
    """Give a name that no other queue has, and remove that queue's keys at the end."""
    queue = f"demo-{secrets.token_hex(4)}"
    try:
        yield queue
    finally:
        if not address.startswith("embedded:"):
            # A Redis that has gone away keeps the keys; why it went is what the caller has to hear.
            with anyio.move_on_after(CLEANING_S, shield=True), suppress(Exception):
                store = Store(seeds_of(address), DeadLetterConfig(queue=queue, shards=SHARDS))
                try:
                    await store.erase()
                finally:
                    await store.close()
