"""Speaking HTTP byte by byte, as clients do that mean no good, and as those do that a test wants to see the wire of."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PATIENCE_S = 20.0


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def record(self) -> Any:
        """The JSON that it is."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the problem that it is."""
        assert self.headers["content-type"] == "application/problem+json"
        return str(self.record["code"])


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        """Send some bytes, whenever the other side takes them."""
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Read one reply."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split(" ")[1]), headers, body)

    async def rest(self) -> bytes:
        """Read until the other side hangs up."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def wire(url: str, context: ssl.SSLContext | None = None) -> AsyncGenerator[Wire]:
    """Connect to a server."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


def head(method: str = "GET", path: str = "/echo", **headers: str) -> bytes:
    """Return a head; ``_`` in a header's name is ``-``, and ``Host`` is localhost unless it is said."""
    said = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def ask(url: str, data: bytes, context: ssl.SSLContext | None = None) -> Reply:
    """Send these bytes on a connection of their own; return the reply."""
    async with wire(url, context) as connection:
        connection.send(data)
        return await connection.reply()
