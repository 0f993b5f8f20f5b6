"""A few pages over HTTP, from a thread and an event loop of their own: they answer while the process's loop is blocked.

It takes GET alone, one request a connection, and holds out against clients that mean no good: a head has 8 KiB, a
connection `CONNECTION_S` seconds from its first byte to its last, and there are at most `MOST_CONNECTIONS`; the next
one takes the place of the oldest, so that a probe is answered however many slow ones there are.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, NamedTuple

from uno.event_bus.dead_letter.errors import ConfigError

__all__ = ["Page", "PageServer"]

logger = logging.getLogger(__name__)

HEAD_BYTES: Final = 8192
CONNECTION_S: Final = 10.0
MOST_CONNECTIONS: Final = 32

LINGER_S: Final = 1.0
"""How long an answered client may take to hang up: a connection that is closed before would lose its answer."""

PLAIN: Final = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """An answer."""

    body: bytes
    type: str = PLAIN
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = {}


def _refusal(status: HTTPStatus, **headers: str) -> Page:
    return Page(f"{status.value} {status.phrase}\n".encode(), status=status, headers=headers)


class PageServer:
    """Serves pages by their paths; each is made by an async function of the request's headers, in the server's loop."""

    def __init__(
        self, pages: Mapping[str, Callable[[Mapping[str, str]], Awaitable[Page]]], *, host: str, port: int
    ) -> None:
        self._pages = pages
        self._host, self._port = host, port
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="uno-pages", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._is_up = threading.Event()
        self._open: dict[asyncio.StreamWriter, None] = {}
        """Connections, the oldest first."""

    @property
    def url(self) -> str:
        """Where it is served, with the port that was found for 0; needs `bind`."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def bind(self) -> None:
        """Take the address. Raises `ConfigError` with one line that names it."""
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            is_of_system = bool(error.errno) and not isinstance(error, socket.gaierror)
            why = os.strerror(error.errno or 0) if is_of_system else error.strerror or str(error)
            raise ConfigError(f"metrics cannot be served at {self._host}:{self._port}: {why}") from error

    def start(self) -> None:
        """Serve from now on."""
        if self._socket is None:
            self.bind()
        self._thread.start()
        self._is_up.wait()

    def close(self) -> None:
        """End it, within milliseconds; answers that are on their way are cut off."""
        if self._loop is not None:
            with suppress(RuntimeError):  # its loop has ended by itself
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()
        if self._socket is not None:
            self._socket.close()

    # -- in its own thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._main())
        except Exception:
            logger.exception("the server of metrics and probes has ended")
        finally:
            self._is_up.set()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=HEAD_BYTES)
        self._loop = asyncio.get_running_loop()
        self._is_up.set()
        await self._end.wait()
        server.close()
        server.abort_clients()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self._open) >= MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(CONNECTION_S):
                page, has_body = await self._answer(reader)
                writer.write(_encoded(page, has_body))
                writer.write_eof()
                await writer.drain()
                await _hung_up(reader)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # a client that is slow, or gone
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Page, bool]:
        """Return the page that is asked for, and whether its body is wanted."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), True
        first, *lines = head.split("\r\n")[:-2]
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _refusal(HTTPStatus.BAD_REQUEST), True
        method, target, _ = words
        make = self._pages.get(target.partition("?")[0])
        if make is None:
            return _refusal(HTTPStatus.NOT_FOUND), method != "HEAD"
        if method != "GET":
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET"), method != "HEAD"
        named = (line.partition(":") for line in lines)
        try:
            return await make({name.strip().lower(): value.strip() for name, _, value in named}), True
        except Exception:
            logger.exception("page %s failed", target[:100])
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR), True


def _encoded(page: Page, has_body: bool) -> bytes:
    headers = {
        "Content-Type": page.type,
        "Content-Length": len(page.body),
        "Cache-Control": "no-store",
        "Connection": "close",
        **page.headers,
    }
    lines = [f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (page.body if has_body else b"")


async def _hung_up(reader: asyncio.StreamReader) -> None:
    """Wait until the client has hung up, passing over what else it says."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while await reader.read(HEAD_BYTES):
                pass
