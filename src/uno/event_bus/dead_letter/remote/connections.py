"""Connections to a service: each request is sent once, and its reply read. What a reply means, `client` knows."""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from io import BytesIO
from time import monotonic
from typing import Any, Final, NamedTuple

import aiohttp
import anyio
from opentelemetry import propagate
from yarl import URL

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.remote.wire import NDJSON, PREFIX, QUEUE_HEADER
from uno.event_bus.dead_letter.telemetry.tracing.tracers import harmless

__all__ = ["CONNECTIONS", "FAILURES", "NOT_DONE", "SILENT_S", "Connections", "Query", "Reply", "lines_of"]

CONNECT_S: Final = 2.0
"""How long a request may take to connect, at most."""

CONNECTIONS: Final = 16
"""To the service at a time; more requests wait for one."""

IDLE_S: Final = 4.0
"""How long an idle connection is kept: less than servers and proxies do, who would hang up just as we ask."""

SILENT_S: Final = 30.0
"""How long a reply in lines may be silent; the service says something every 10 s."""

LARGE_BYTES: Final = 1024 * 1024
"""Bodies beyond this are sent piece by piece: the event loop has other things to do meanwhile."""

FAILURES: Final = (aiohttp.ClientError, TimeoutError)
"""What is raised when there is no reply, or no whole one."""

NOT_DONE: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""Of these, what says that nobody has heard of the request."""

type Query = Mapping[str, str | int | Sequence[str]]


class Reply(NamedTuple):
    """A whole reply."""

    status: int
    reason: str
    headers: Mapping[str, str]
    """By names in any case."""
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the service did what it was asked to."""
        return self.status < HTTPStatus.MULTIPLE_CHOICES


class Connections:
    """Those of one event loop, which has to run; `close` at the end. Every call raises `FAILURES`.

    Args:
        url: Of the service.
        queue: Which of its queues is meant: the service refuses requests for another one.
        ca_file: Who vouches for the service's certificate; None: the system's.
    """

    def __init__(self, url: str, queue: str, ca_file: str | None = None) -> None:
        self._url = f"{url}{PREFIX}"
        # A context takes milliseconds to make, and plain http needs none.
        checks = _context(ca_file) if url.startswith("https://") else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ssl=checks),
            headers={QUEUE_HEADER: queue, "user-agent": "uno-dead-letter"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy for the way out of the house is not for the way to this service
        )
        # Not the connector's own limit, which cancels those that wait when it is closed.
        self._turns = anyio.Semaphore(CONNECTIONS, fast_acquire=True)

    @property
    def are_closed(self) -> bool:
        """Whether `close` was called."""
        return self._session.closed

    async def close(self) -> None:
        """Close them; requests that are under way fail."""
        await self._session.close()

    @asynccontextmanager
    async def turn(self, until: float) -> AsyncGenerator[None]:
        """Have one of them for a request, first come, first served; wait until this monotonic time at most."""
        with anyio.move_on_after(until - monotonic()) as patience:
            await self._turns.acquire()
        if patience.cancelled_caught:
            raise aiohttp.ConnectionTimeoutError(f"all {CONNECTIONS} connections are in use")
        try:
            yield
        finally:
            self._turns.release()

    async def ask(
        self, method: str, path: str, content: bytes | None, *, query: Query | None, token: str, timeout_s: float
    ) -> Reply:
        """Return the reply to a request, whole, within this time."""
        # It ends before the whole does, or nobody could say that nothing was done.
        connect_s = min(CONNECT_S, 0.8 * timeout_s)
        with anyio.fail_after(timeout_s):
            timeout = aiohttp.ClientTimeout(sock_connect=connect_s)
            return await _whole(await self._send(method, path, content, query or {}, token, timeout))

    async def begin(
        self, method: str, path: str, content: bytes, *, token: str, timeout_s: float
    ) -> aiohttp.ClientResponse | Reply:
        """Return a reply in lines that are still to be read, for the caller to close; or a refusal, whole."""
        timeout = aiohttp.ClientTimeout(sock_connect=min(CONNECT_S, timeout_s), sock_read=SILENT_S)
        with anyio.fail_after(timeout_s + SILENT_S):  # a body that nobody reads is sent for ever
            response = await self._send(method, path, content, {}, token, timeout, accept=NDJSON)
            return response if response.status < HTTPStatus.MULTIPLE_CHOICES else await _whole(response)

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        query: Query,
        token: str,
        timeout: aiohttp.ClientTimeout,
        **headers: str,
    ) -> aiohttp.ClientResponse:
        """Send a request; return its reply, of which the head is here."""
        _inject(headers)
        if content is not None:
            headers["content-type"] = "application/json"
        if token:
            headers["authorization"] = f"Bearer {token}"
        for _ in range(2):  # times round the event loop: it learns which idle connections the service has closed
            await asyncio.sleep(0)
        return await self._session.request(
            method,
            URL(f"{self._url}{path}", encoded=True).extend_query(query),
            data=BytesIO(content) if content and len(content) > LARGE_BYTES else content,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,  # the token is for this address alone
        )


async def lines_of(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Yield the lines of a reply, however long they are; empty ones too, and a last one that lacks its end."""
    begun: list[bytes] = []
    async for piece in response.content.iter_any():
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield b"".join((*begun, line))
            begun.clear()
        begun.append(rest)
    yield b"".join(begun)


async def _whole(response: aiohttp.ClientResponse) -> Reply:
    async with response:
        return Reply(response.status, response.reason or "", response.headers, await response.read())


def _context(ca_file: str | None) -> ssl.SSLContext:
    """Return how the service's certificate is checked: always, and that it is of the host's name."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = os.strerror(error.errno) if error.errno and not isinstance(error, ssl.SSLError) else str(error)
        raise ConfigError(f"DLQ_SERVICE_CA_FILE (service_ca_file) is {ca_file!r}: {why}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@harmless
def _inject(headers: dict[str, Any]) -> None:
    propagate.inject(headers)
