"""Servers of one's own: started for a while, gone afterwards."""

import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster

__all__ = ["running", "temporary_server"]


@asynccontextmanager
async def running(servers: EmbeddedServer | LocalCluster) -> AsyncGenerator[None]:
    """Have servers that run while the body does; they are stopped also when their start was interrupted."""
    try:
        await anyio.to_thread.run_sync(servers.start)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(servers.stop)


@asynccontextmanager
async def temporary_server(prefix: str, *options: str) -> AsyncGenerator[EmbeddedServer]:
    """Give a running embedded server in a new directory, whose name begins with ``prefix``; both go away.

    ``options`` are further flags of the server's command line.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    embedded = EmbeddedServer(directory, options=options)
    try:
        async with running(embedded):
            yield embedded
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
