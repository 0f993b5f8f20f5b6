"""What those do to a service who mean no good: each attack once, and what came of it.

An outcome is the status of a problem, ``closed``, or what else came back, said in words: no attack should get that.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import anyio

from tests.support.harness.payloads import SECRET
from tests.support.hostile import HOSTILE
from tests.support.raw_http import Wire, head, wire
from tests.support.requests_of_roles import REQUESTS

__all__ = ["ATTACKS", "READS", "Target", "request"]

MIB: Final = 1 << 20
SLOW: Final = 300
"""Connections of a slowloris."""

TOGETHER: Final = 20
"""Requests of a verb at a time."""


class Target(NamedTuple):
    """A service, and tokens for it: of each role, ``none`` (empty), ``unknown`` and ``expired``."""

    url: str
    tokens: Mapping[str, str]


type Attack = Callable[[Target], Awaitable[list[str]]]
"""Returns the outcome of each of its requests."""


async def outcome(connection: Wire) -> str:
    """What a request has come to."""
    try:
        reply = await connection.reply()
    except (ConnectionError, EOFError):
        return "closed"
    except TimeoutError:
        return "no answer"
    if "<script" in reply.body.decode("latin-1") and "json" not in reply.headers.get("content-type", ""):
        return f"{reply.status} with a script"
    kind = reply.headers.get("content-type", "")
    return str(reply.status) if kind == "application/problem+json" else f"{reply.status} of {kind or 'nothing'}"


async def send(target: Target, data: bytes) -> list[str]:
    """One request on a connection of its own."""
    try:
        async with wire(target.url) as connection:
            connection.send(data)
            return [await outcome(connection)]
    except ConnectionError:
        return ["closed"]


def request(target: Target, method: str, path: str, token: str, body: bytes = b"", /, **headers: str) -> bytes:
    """A sound request of somebody with this token."""
    if target.tokens[token]:
        headers["authorization"] = f"Bearer {target.tokens[token]}"
    if body:
        headers = {"content_type": "application/json", "content_length": str(len(body))} | headers
    return head(method, path, x_secret=SECRET, **headers) + body


# -- connections and bodies -------------------------------------------------------------------------------


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


# -- tokens and bodies of requests ------------------------------------------------------------------------


def of_no_right(name: str, token: str) -> Attack:
    """A request that would do something, of somebody who must not."""
    sound = REQUESTS[name]
    method, path = name.split(" ")

    async def attack(target: Target) -> list[str]:
        body = b"" if sound.body is None else json.dumps(sound.body).encode()
        return await send(
            target, request(target, method, path.replace("{id}", "0-1-0"), token, body, content_type=sound.content_type)
        )

    return attack


def together(name: str, token: str) -> Attack:
    """The same from many at once."""
    once = of_no_right(name, token)

    async def attack(target: Target) -> list[str]:
        outcomes: list[str] = []

        async def one() -> None:
            outcomes.extend(await once(target))

        async with anyio.create_task_group() as group:
            for _ in range(TOGETHER):
                group.start_soon(one)
        return outcomes

    return attack


def body(content: bytes, path: str = "/v1/letters", token: str = "capture", **headers: str) -> Attack:
    """A body that is none."""
    return lambda target: send(target, request(target, "POST", path, token, content, **headers))


def query(text: str) -> Attack:
    """A query that is none."""
    return lambda target: send(target, request(target, "GET", f"/v1/letters?{text}", "read"))


def reading(path: str, method: str = "GET", **headers: str) -> Attack:
    """What somebody who may look asks for, and reads to its end."""

    async def attack(target: Target) -> list[str]:
        try:
            async with wire(target.url) as connection:
                connection.send(request(target, method, path, "read", connection="close", **headers))
                reply = await connection.reply()
                await connection.rest()
                return [f"{reply.status} read"]
        except (ConnectionError, EOFError):
            return ["closed"]

    return attack


def raw(data: bytes, token: str) -> Attack:
    """Bytes as they stand, but for the token."""

    def attack(target: Target) -> Awaitable[list[str]]:
        told = f"\r\nAuthorization: Bearer {target.tokens[token]}\r\n".encode() if target.tokens[token] else b"\r\n"
        return send(target, data.replace(b"\r\n", told, 1) if b" HTTP/1.1\r\n" in data else data)

    return attack


SECRET_BODY: Final = b'{"type": "t", "note": "' + SECRET.encode() + b'", "payload": '
BODIES: Final[dict[str, Attack]] = {
    "no JSON": body(SECRET.encode()),
    "nothing": body(b""),
    "half of a body": body(SECRET_BODY + b'"' + SECRET.encode()),
    "nested deeply": body(SECRET_BODY + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "nested deeply, and no end": body(b'{"a":' * 100_000),
    "nested headers": body(SECRET_BODY + b'1, "headers": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}"),
    "a huge number": body(b'{"type": "t", "payload": 1, "attempts": ' + b"9" * 100_000 + b"}"),
    "a number below 0": body(b'{"type": "t", "payload": 1, "delay_ms": -9007199254740993}'),
    "NaN": body(b'{"type": "t", "payload": 1, "failed_at_ms": NaN}'),
    "a NUL": body(b'{"type": "t\x00", "payload": 1}'),
    "bad UTF-8": body(b'{"type": "\xff\xfe", "payload": "' + SECRET.encode() + b'"}'),
    "bad UTF-8 in a payload": body(SECRET_BODY + b'"\xc3\x28"}'),
    "half a surrogate": body(b'{"type": "\\ud800", "payload": 1}'),
    "a script for a type": body(b'{"type": ["<script>alert(1)</script>"], "payload": 1}'),
    "a script for a content type": body(b"{}", content_type="text/<script>"),
    "a form": body(b"type=t&payload=1", content_type="application/x-www-form-urlencoded"),
    "two payloads": body(b'{"type": "t", "payload": 1, "payload_base64": "MQ=="}'),
    "many events": body(json.dumps({"events": [{"type": "t", "payload": 1}] * 1001}).encode(), "/v1/letters/batch"),
    "no events": body(b'{"events": []}', "/v1/letters/batch"),
    "no CloudEvent": body(b'{"specversion": "2.0"}', "/v1/events", content_type="application/cloudevents+json"),
    "a CloudEvent nested deeply": body(b"[" * 100_000, "/v1/events", content_type="application/cloudevents-batch+json"),
    "every letter, of an unknown field": body(b'{"where": {"sate": ["parked"]}}', "/v1/letters/retry", "operate"),
    "letters in no way": body(b"{}", "/v1/letters/retry", "operate"),
    "letters in two ways": body(b'{"ids": ["0-1-0"], "where": {}, "why": "x"}', "/v1/letters/discard", "operate"),
    "a discard without why": body(b'{"where": {}}', "/v1/letters/discard", "operate"),
    "many ids": body(json.dumps({"ids": ["0-1-0"] * 10_001}).encode(), "/v1/letters/retry", "operate"),
    "no ids": body(b'{"ids": "<script>"}', "/v1/letters/retry", "operate"),
    "shards of a script": body(b'{"shards": "<script>"}', "/v1/shards", "admin"),
    "3 shards": body(b'{"shards": 3}', "/v1/shards", "admin"),
    "fewer shards": body(b'{"shards": 1}', "/v1/shards", "admin"),
    "another queue": body(b'{"type": "t", "payload": 1}', dlq_queue="<script>"),
    "a path of a script": lambda target: send(
        target, request(target, "GET", "/v1/letters/%3Cscript%3Ealert(1)%3C/script%3E", "read")
    ),
    "a long id": lambda target: send(target, request(target, "GET", f"/v1/letters/{'9' * 20_000}-1-1", "read")),
    "a huge limit": query(f"limit=99999999999999999999&x={SECRET}"),
    "a cursor of dots": query("cursor=../../etc/passwd"),
    "a state of a script": query("state=%3Cscript%3E"),
    "many parameters": query("&".join(["state=parked"] * 2000)),
    "a method of its own": lambda target: send(target, request(target, "DELETE", "/v1/letters", "admin")),
}

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

STRANGERS: Final = ("none", "unknown", "expired")
ROLES: Final = ("capture", "read", "operate", "admin")
INCLUDED: Final = {
    "capture": ("admin",),
    "read": ("operate", "admin"),
    "operate": ("admin",),
    "admin": (),
    "any": ROLES,
}

ATTACKS: Final[dict[str, Attack]] = {
    **CONNECTIONS,
    **BODIES,
    **{f"{name}, {token}": raw(data, token) for name, (data, _) in HOSTILE.items() for token in ("none", "capture")},
    **{
        f"{name}, {token}": of_no_right(name, token)
        for name, sound in REQUESTS.items()
        if sound.role is not None
        for token in (*STRANGERS, *ROLES)
        if token != sound.role and token not in INCLUDED[sound.role]
    },
    **{
        f"{name}, many of {token}": together(name, token)
        for name, sound in REQUESTS.items()
        if sound.role == "operate"
        for token in ("none", "read")
    },
}
"""What it is → how it is done."""

READS: Final[dict[str, Attack]] = {
    "every letter": reading("/v1/letters", accept="application/x-ndjson"),
    "every letter, whole": reading("/v1/letters?whole=true", accept="application/x-ndjson"),
    "letters of a type": reading("/v1/letters?type=none&limit=1000"),
    "verify": reading("/v1/verify", "POST"),
    "stats": reading("/v1/stats"),
    "the audit stream": reading("/v1/audit?limit=1000"),
    "metrics": reading("/metrics"),
}
"""What Redis has work with: nothing is wrong with one of them, and with each other one of hundreds at a time."""
