"""Who acts: the name, and the request, that the audit stream gives to what an operator does.

It goes along with the context of the caller: tasks and threads that are started with a copy of it act as their caller.
"""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from secrets import token_hex
from typing import NamedTuple

__all__ = ["Actor", "acting_as", "current_actor", "process_user"]


class Actor(NamedTuple):
    """Who does something, and in which request."""

    who: str
    request_id: str


_acting: ContextVar[Actor | None] = ContextVar("uno_actor", default=None)


@contextmanager
def acting_as(who: str, request_id: str = "") -> Generator[None]:
    """Have what is done inside recorded as done by `who`, in this request; empty: one of its own for every verb.

    The engine believes it: who the caller is has to be known before. Both are cut at 256 characters.
    """
    token = _acting.set(Actor(who, request_id))
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> Actor:
    """Return who acts, `process_user` unless somebody else was named, with a request id: a new one if none was."""
    who, request_id = _acting.get() or (process_user(), "")
    return Actor(who, request_id or token_hex(8))


@cache
def process_user() -> str:
    """Return ``user@host`` of this process; ``uid 1000@host`` where its user has no name, as in many containers."""
    uid = os.getuid()
    try:
        from pwd import getpwuid

        user = getpwuid(uid).pw_name
    except (ImportError, KeyError, OSError):
        user = f"uid {uid}"
    try:
        host = socket.gethostname()
    except OSError:
        host = "unknown"
    return f"{user}@{host}"
