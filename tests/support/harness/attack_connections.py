"""Attacks by connections: hundreds of them, that say little, or far too much."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import anyio

from tests.support.harness.attack import Attack, Target, outcome, request, send
from tests.support.raw_http import Wire, head, wire

__all__ = ["CONNECTIONS", "TOGETHER"]

MIB: Final = 1 << 20
SLOW: Final = 300
"""Connections of a slowloris."""

TOGETHER: Final = 20
"""Requests of a verb at a time."""


async def slowloris(target: Target) -> list[str]:
    """Heads that never end, a byte each moment, on hundreds of connections."""
    outcomes: list[str] = []

    async def dribble(connection: Wire) -> None:
        async with anyio.create_task_group() as group:

            async def more() -> None:
                for byte in head(x="a" * 10_000):
                    connection.send(bytes([byte]))
                    await anyio.sleep(0.3)

            group.start_soon(more)
            outcomes.append(await outcome(connection))
            group.cancel_scope.cancel()

    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        for _ in range(SLOW):
            try:
                group.start_soon(dribble, await stack.enter_async_context(wire(target.url)))
            except ConnectionError:
                outcomes.append("closed")
    return outcomes


async def slow_bodies(target: Target) -> list[str]:
    """Bodies of which the most is sent, and then nothing more."""
    outcomes: list[str] = []
    whole = request(target, "POST", "/v1/letters/batch", "capture", b" " * 200_000)

    async def one() -> None:
        outcomes.extend(await send(target, whole[:150_000]))

    async with anyio.create_task_group() as group:
        for _ in range(TOGETHER):
            group.start_soon(one)
    return outcomes


async def parts_of(part: bytes) -> AsyncIterator[bytes]:
    """1 GiB."""
    for _ in range(1024):
        yield part


def gibibyte(part: bytes, token: str = "capture", **headers: str) -> Attack:
    """1 GiB, of which the head says this."""

    async def attack(target: Target) -> list[str]:
        try:
            async with wire(target.url) as connection:
                connection.send(request(target, "POST", "/v1/letters", token, **headers))
                async with anyio.create_task_group() as group:

                    async def pour() -> None:
                        try:
                            async for piece in parts_of(part):
                                connection.send(piece)
                                await connection.writer.drain()
                        except ConnectionError:
                            return
                        group.cancel_scope.cancel()  # all of it was taken

                    group.start_soon(pour)
                    found = await outcome(connection)
                    group.cancel_scope.cancel()
                    return [found]
                return ["1 GiB was taken"]
        except ConnectionError:
            return ["closed"]

    return attack


CHUNK: Final = b"100000\r\n" + bytes(MIB) + b"\r\n"
JSON: Final = {"content_type": "application/json"}


async def idle_connections(target: Target) -> list[str]:
    """More connections than there may be, that say nothing: each takes the place of another."""
    async with AsyncExitStack() as stack:
        for _ in range(2 * SLOW):
            try:
                await stack.enter_async_context(wire(target.url))
            except ConnectionError:
                break
    return ["closed"]


CONNECTIONS: Final[dict[str, Attack]] = {
    "slowloris": slowloris,
    "slow bodies": slow_bodies,
    "idle connections": idle_connections,
    "1 GiB": gibibyte(bytes(MIB), content_length=str(1024 * MIB), **JSON),
    "1 GiB without a token": gibibyte(bytes(MIB), "none", content_length=str(1024 * MIB), **JSON),
    "1 GiB in chunks": gibibyte(CHUNK, transfer_encoding="chunked", **JSON),
    "1 GiB in chunks without a token": gibibyte(CHUNK, "none", transfer_encoding="chunked", **JSON),
    "1 GiB that says 100 bytes": gibibyte(bytes(MIB), content_length="100", **JSON),
    "10 bytes that say 1 MiB": lambda target: send(
        target, request(target, "POST", "/v1/letters", "capture", content_length=str(MIB), **JSON) + b"0123456789"
    ),
    "a chunk that says 2 GiB": lambda target: send(
        target,
        request(target, "POST", "/v1/letters", "capture", transfer_encoding="chunked", **JSON) + b"7fffffff\r\n{",
    ),
}
"""What it is → how it is done."""
