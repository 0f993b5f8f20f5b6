"""An attack on a service: who is attacked, what is sent, and what came of it.

An outcome is the status of a problem, ``closed``, or what else came back, said in words: no attack should get that.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from tests.support.harness.payloads import SECRET
from tests.support.raw_http import Wire, head, wire

__all__ = ["Attack", "Target", "outcome", "request", "send"]


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
