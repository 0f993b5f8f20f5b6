"""Where a queue's letters are: an embedded server if it has one, and for each event loop a store and a spool."""

import asyncio
import logging

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.spool.spool import Spool
from uno.event_bus.dead_letter.store.connect import Access, Client, seeds_of
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Storage"]

logger = logging.getLogger(__name__)


class Storage:
    """Gives the running event loop its store and its spool: connections and tasks belong to one loop.

    Raises `ConfigError` for a source that leads nowhere.
    """

    def __init__(self, source: Client | str, config: DeadLetterConfig) -> None:
        self._source = source
        self._config = config
        self._access = Access.of(config)
        self._server: EmbeddedServer | None = None
        if isinstance(source, str) and source.startswith("embedded:"):
            self._access.refuse_for("embedded:")
            self._server = EmbeddedServer.from_url(source)
        else:
            seeds_of(source, self._access)  # a wrong URL or client is told now, not at the first failure
        self._stores: dict[asyncio.AbstractEventLoop, Store] = {}
        self._spools: dict[asyncio.AbstractEventLoop, Spool] = {}

    async def store(self, *, make: bool = True) -> Store:
        """Return the store, open; without `make`, a queue that nobody has ever used is not made."""
        loop = asyncio.get_running_loop()
        if loop not in self._stores:
            source = self._source if self._server is None else await anyio.to_thread.run_sync(self._server.start)
            # Nothing awaits from here on: tasks that come first together share one store.
            self._stores = {other: store for other, store in self._stores.items() if not other.is_closed()}
            if loop not in self._stores:
                self._stores[loop] = Store(
                    seeds_of(source, self._access), self._config, client_name=f"uno-dlq-{self._config.queue}"
                )
        store = self._stores[loop]
        await store.open(make=make)
        return store

    def spool(self) -> Spool | None:
        """Return the spool, None without ``spool_dir``."""
        if self._config.spool_dir is None:
            return None
        loop = asyncio.get_running_loop()
        if loop not in self._spools:
            for other in [other for other in self._spools if other.is_closed()]:
                self._spools.pop(other).forget()
            self._spools[loop] = Spool(self._config, self.store)
        return self._spools[loop]

    async def open_spool(self) -> None:
        """Send what waits in the spool from now on: what looks or acts on letters alone does not begin to."""
        spool = self.spool()
        if spool is not None:
            await spool.open()

    async def open(self, *, make: bool = True) -> None:
        """Open the store, and unless the queue is only looked at, the spool."""
        if make:
            await self.open_spool()
        await self.store(make=make)

    async def open_or_spool(self) -> None:
        """Open the store; while Redis is away the spool is enough."""
        try:
            await self.open()
        except StoreUnavailable as error:
            if self._config.spool_dir is None:
                raise
            queue, directory = self._config.queue, self._config.spool_dir
            fields = {"queue": queue}
            logger.warning(
                "queue %s opens without Redis, and captures into %s: %s", queue, directory, error, extra=fields
            )

    async def aclose(self) -> None:
        """Close what this loop has; an embedded server that nobody else uses ends. Letters stay in the spool."""
        spool = self._spools.pop(asyncio.get_running_loop(), None)
        if spool is not None:
            await spool.aclose()
        store = self._stores.pop(asyncio.get_running_loop(), None)
        if store is not None:
            await store.close()
        if self._server is not None:
            await anyio.to_thread.run_sync(self._server.stop)
