"""The exposition of a worker process: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for who supervises it."""

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from time import monotonic
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread
import msgspec
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from uno.event_bus.dead_letter.telemetry.condition import Condition
from uno.event_bus.dead_letter.telemetry.page_server import Page, PageServer

__all__ = ["Exposition"]

logger = logging.getLogger(__name__)

REFRESH_S: Final = 2.0
"""How long a scrape waits for fresh values; then it shows the last ones. Prometheus itself waits 10 s by default."""

GZIP_LEVEL: Final = 1
"""A page of 2 MB becomes a tenth in some 10 ms; the default level takes several times as long for little more."""


class Exposition:
    """Serves a registry and two probes while the ``async with`` block runs; `url` is where.

    Args:
        registry: What ``/metrics`` shows, as OpenMetrics when the client accepts that, else as text; gzipped likewise.
        host: Address to bind.
        port: Port to bind; 0: any free one.
        refresh: Awaited in the event loop of the block before a scrape, for at most `REFRESH_S`: when it takes longer,
            fails, or the loop is blocked, the last values are shown. Scrapes that come together share one call.
        live: Tells whether the process gets on; 503 means that it should be ended. Called in the server's thread.
        ready: Tells whether it does its work. Called in the server's thread.

    Raises `ConfigError` when the address cannot be bound.
    """

    def __init__(
        self,
        registry: Collector,
        *,
        host: str,
        port: int,
        refresh: Callable[[], Awaitable[object]],
        live: Callable[[], Condition],
        ready: Callable[[], Condition],
    ) -> None:
        self._registry = registry
        self._refresh = refresh
        self._live, self._ready = live, ready
        self._server = PageServer(
            {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}, host=host, port=port
        )
        self._home: asyncio.AbstractEventLoop | None = None
        self._refreshing: asyncio.Future[None] | None = None
        self._refreshing_since = 0.0

    @property
    def url(self) -> str:
        """Where it is served, for example ``http://127.0.0.1:9464``."""
        return self._server.url

    async def __aenter__(self) -> Self:
        self._home = asyncio.get_running_loop()
        self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._server.close)

    # -- in the server's loop ------------------------------------------------------------------------

    async def _metrics(self, headers: Mapping[str, str]) -> Page:
        if self._live().ok:  # else its loop is blocked: nothing fresh would come
            await self._refreshed()
        encode, content_type = choose_encoder(headers.get("accept", ""))
        body = encode(self._registry)
        if gzip_accepted(headers.get("accept-encoding", "")):
            return Page(gzip.compress(body, GZIP_LEVEL), content_type, headers={"Content-Encoding": "gzip"})
        return Page(body, content_type)

    async def _livez(self, headers: Mapping[str, str]) -> Page:
        return _page(self._live())

    async def _readyz(self, headers: Mapping[str, str]) -> Page:
        return _page(self._ready())

    async def _refreshed(self) -> None:
        """Wait for fresh values; not again for a refresh that others have waited for in vain."""
        if self._refreshing is None or self._refreshing.done():
            assert self._home is not None
            call = self._refresh_at_home()
            try:
                self._refreshing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._home))
            except RuntimeError:  # that loop has ended
                call.close()
                return
            self._refreshing_since = monotonic()
        left_s = self._refreshing_since + REFRESH_S - monotonic()
        await asyncio.wait([self._refreshing], timeout=max(0.0, left_s))

    # -- in the worker's loop ------------------------------------------------------------------------

    async def _refresh_at_home(self) -> None:
        try:
            with anyio.fail_after(REFRESH_S):
                await self._refresh()
        except TimeoutError:
            logger.warning("metrics are not fresh: the queue did not answer within %.0f s", REFRESH_S)
        except Exception as error:
            logger.warning("metrics are not fresh: %s: %s", type(error).__name__, error)


def _page(condition: Condition) -> Page:
    verdict = {"ok": True} if condition.ok else {"ok": False, "why": condition.why}
    status = HTTPStatus.OK if condition.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(msgspec.json.encode({**verdict, **condition.facts}) + b"\n", "application/json", status)
