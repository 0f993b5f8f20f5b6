"""The service's application in the test's own process: as a client sees it, and raw, for streams."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.service.app import make_app
from uno.event_bus.dead_letter.service.caller import Caller

__all__ = ["Streamed", "app_of", "client_of", "known_as"]


def app_of(queue: DeadLetterQueue, stop: anyio.Event | None = None, **how: Any) -> ASGIApp:
    """The application of a queue, which does what anybody asks unless `how` says otherwise."""
    return make_app(queue, stop=stop or anyio.Event(), **({"open_to_all": True} | how))


def known_as(app: ASGIApp, caller: Caller, request_id: str = "r-1") -> ASGIApp:
    """The application behind what knows its callers."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"caller": caller, "request_id": request_id}}, receive, send)

    return wrapped


@asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of an application."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


class Streamed:
    """One request whose reply is read piece by piece; the client may leave at any time, or stop reading."""

    def __init__(
        self, app: ASGIApp, method: str, path: str, body: bytes = b"", query: str = "", **headers: str
    ) -> None:
        self._app = app
        named = {"accept": "application/x-ndjson", "content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        self._scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "scheme": "http",
            "server": ("service", 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
        }
        self._body = [body]
        self._left = anyio.Event()
        self.pieces, self._take = anyio.create_memory_object_stream[bytes](0)
        self.status = 0
        self.complete = False
        """The reply was brought to its end."""

    def leave(self) -> None:
        """Hang up."""
        self._left.set()

    async def _receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            await self.pieces.send(message["body"])
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True

    async def run(self) -> None:
        """Have the application answer."""
        async with self.pieces:
            await self._app(self._scope, self._receive, self._send)

    async def piece(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        try:
            return await self._take.receive()
        except anyio.EndOfStream:
            return None

    async def rest(self) -> bytes:
        """All that is left of the body."""
        return b"".join([piece async for piece in self._take])

    def close(self) -> None:
        """Forget it."""
        self._take.close()
