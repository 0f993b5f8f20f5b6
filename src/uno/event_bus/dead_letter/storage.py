"""Where a queue's letters are: for each event loop a store, or a service in front of one, and a spool."""

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable
from uno.event_bus.dead_letter.rules import require_service_url
from uno.event_bus.dead_letter.spool.spool import Spool
from uno.event_bus.dead_letter.store.connect import Access, Client, seeds_of
from uno.event_bus.dead_letter.store.durability import flags_for
from uno.event_bus.dead_letter.store.embedded import EmbeddedServer
from uno.event_bus.dead_letter.store.store import Store

if TYPE_CHECKING:
    from uno.event_bus.dead_letter.remote.store import RemoteStore

__all__ = ["Storage"]

logger = logging.getLogger(__name__)


class Storage:
    """Gives the running event loop its store and its spool: connections and tasks belong to one loop.

    Raises `ConfigError` for a source that leads nowhere.
    """

    def __init__(self, source: Client | str, config: DeadLetterConfig) -> None:
        self._source = source
        self._config = config
        self.service: str | None = None
        """URL of the service in front of it; None: none."""
        self._access = Access.of(config)
        self._server: EmbeddedServer | None = None
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            self.service = require_service_url(source)
            _remote_store()  # said now, not at the first failure
        elif isinstance(source, str) and source.startswith("embedded:"):
            self._access.refuse_for("embedded:")
            self._server = EmbeddedServer.from_url(source, options=flags_for(config))
        else:
            seeds_of(source, self._access)  # a wrong URL or client is told now, not at the first failure
        self._receivers: dict[asyncio.AbstractEventLoop, Store | RemoteStore] = {}
        self._spools: dict[asyncio.AbstractEventLoop, Spool] = {}

    async def receiver(self, *, make: bool = True) -> "Store | RemoteStore":
        """Return what captures go to, open; without `make`, a queue that nobody has ever used is not made."""
        loop = asyncio.get_running_loop()
        if loop not in self._receivers:
            if self._server is not None:
                await anyio.to_thread.run_sync(self._server.start)
            # Nothing awaits from here on: tasks that come first together share one.
            self._receivers = {other: made for other, made in self._receivers.items() if not other.is_closed()}
            if loop not in self._receivers:
                self._receivers[loop] = self._new()
        receiver = self._receivers[loop]
        await (receiver.open(make=make) if isinstance(receiver, Store) else receiver.open())
        return receiver

    def _new(self) -> "Store | RemoteStore":
        if self.service is not None:
            return _remote_store()(self.service, self._config)
        source = self._source if self._server is None else self._server.url
        return Store(seeds_of(source, self._access), self._config, client_name=f"uno-dlq-{self._config.queue}")

    async def store(self, verb: str) -> Store:
        """Return the store, open. Raises as `require_redis`."""
        self.require_redis(verb)
        receiver = await self.receiver()
        assert isinstance(receiver, Store)
        return receiver

    def require_redis(self, verb: str) -> None:
        """Raise `ConfigError` when the queue is behind a service, which lets nobody do this."""
        if self.service is not None:
            raise ConfigError(
                f"queue {self._config.queue!r} is remote, behind {self.service}: {verb} needs Redis itself "
                "(DLQ_REDIS_URL, without DLQ_SERVICE_URL)"
            )

    def spool(self) -> Spool | None:
        """Return the spool, None without ``spool_dir``."""
        if self._config.spool_dir is None:
            return None
        loop = asyncio.get_running_loop()
        if loop not in self._spools:
            for other in [other for other in self._spools if other.is_closed()]:
                self._spools.pop(other).forget()
            self._spools[loop] = Spool(self._config, self.receiver)
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
        await self.receiver(make=make)

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
        receiver = self._receivers.pop(asyncio.get_running_loop(), None)
        if receiver is not None:
            await receiver.close()
        if self._server is not None:
            await anyio.to_thread.run_sync(self._server.stop)


def _remote_store() -> "type[RemoteStore]":
    """Return the class, imported when it is needed: its HTTP client is an extra. Raises `ConfigError` without that."""
    try:
        from uno.event_bus.dead_letter.remote.store import RemoteStore
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ConfigError(
            "a queue behind a service needs an HTTP client, which is an extra: pip install 'uno-dead-letter[remote]'"
        ) from None
    return RemoteStore
