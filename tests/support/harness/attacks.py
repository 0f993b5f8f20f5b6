"""What those do to a service who mean no good: every attack that there is."""

import json
from collections.abc import Awaitable
from typing import Final

import anyio

from tests.support.harness.attack import Attack, Target, request, send
from tests.support.harness.attack_connections import CONNECTIONS, TOGETHER
from tests.support.harness.payloads import SECRET
from tests.support.hostile import HOSTILE
from tests.support.raw_http import wire
from tests.support.requests_of_roles import REQUESTS

__all__ = ["ATTACKS", "READS"]


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
