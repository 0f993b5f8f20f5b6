"""One Redis server: its connection pools, and how a script is called on it."""

import random
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self

import anyio
from hiredis import pack_command
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from uno.event_bus.dead_letter.errors import QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.store.connect import (
    BLOCK_MARGIN_S,
    Meaning,
    NotConnected,
    Target,
    classify,
    describe,
    refusal,
)
from uno.event_bus.dead_letter.store.scripts import Script

__all__ = ["Node", "Refused"]

LONGEST_BLOCK_S: Final = 2.0
"""Blocking reads are short, so that a dead connection is noticed."""

type Word = str | bytes | int
type Lane = Literal["commands", "reads", "heartbeats"]


class Refused(Exception):
    """A script's answer to a caller of an earlier protocol or layout; never leaves the store."""

    def __init__(self, code: str, known: int) -> None:
        self.code = code
        self.known = known
        super().__init__(f"{code} {known}")


class Node:
    """One server, with three pools: commands, blocking reads, heartbeats.

    None of them starves another: a flood of commands cannot delay the renewal of a lease.
    """

    def __init__(self, target: Target, *, timeout_s: float = 5.0, client_name: str = "uno-dlq") -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._plain = False
        self._pools: dict[Lane, ConnectionPool] = {
            "commands": target.pool(name=client_name, size=16, timeout_s=timeout_s),
            "reads": target.pool(name=client_name, size=1024, timeout_s=LONGEST_BLOCK_S + BLOCK_MARGIN_S),
            "heartbeats": target.pool(name=client_name, size=4, timeout_s=timeout_s),
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.disconnect()

    async def send(self, *words: Word, lane: Lane = "commands") -> Any:
        """Send one command once and return its reply as Redis gave it.

        Raises what redis-py raises. A connection that was interrupted between command and reply is closed, so
        that no other caller ever reads that reply.
        """
        return await self._send(_packed(*words), lane)

    async def _send(self, packed: bytes, lane: Lane) -> Any:
        pool = self._pools[lane]
        try:
            connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            # redis-py's pool hides what was refused behind a plain ConnectionError.
            for refused in (error, error.__cause__, error.__context__):
                if isinstance(refused, AuthenticationError | AuthorizationError):
                    raise type(refused)(*refused.args) from None  # itself it would be its own context
            raise NotConnected(describe(error)) from error
        try:
            await connection.send_packed_command([packed], check_health=False)
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            with anyio.CancelScope(shield=True):
                await connection.disconnect(nowait=True)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Word], *, lane: Lane = "commands") -> Any:
        """Run a script once: EVALSHA, then EVAL on this same node when it does not know the script."""
        return await self._run(self._by_sha(script, keys, args), script, keys, args, lane)

    def _by_sha(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> bytes:
        return _packed("EVALSHA", script.plain_sha if self._plain else script.sha, len(keys), *keys, *args)

    async def _run(self, packed: bytes, script: Script, keys: Sequence[str], args: Sequence[Word], lane: Lane) -> Any:
        try:
            return await self._send(packed, lane)
        except NoScriptError:
            return await self._evaluate(script, keys, args, lane)

    async def _evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Word], lane: Lane) -> Any:
        if not self._plain and script.source is not script.plain_source:
            try:
                return await self.send("EVAL", script.source, len(keys), *keys, *args, lane=lane)
            except ResponseError as error:
                # Redis 6.2 takes the `#!lua` line for a syntax error; nothing ran.
                if "compiling script" not in str(error):
                    raise
                self._plain = True
        return await self.send("EVAL", script.plain_source, len(keys), *keys, *args, lane=lane)

    async def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Word],
        *,
        lane: Lane = "commands",
        repeat: bool = True,
        queue: str = "",
    ) -> Any:
        """Run a script; what certainly did not run is tried again, and with `repeat` also what may have run.

        Tries for `timeout_s` in all, with exponential backoff and jitter from 10 ms to 500 ms.

        Raises `StoreUnavailable`, `QueueFull` (no memory) and `Refused` (a later protocol or layout); for what
        no repeat helps, `ConfigError` (credentials), `PermissionDenied` or `StoreError`.
        """
        packed = self._by_sha(script, keys, args)  # not below: what cannot be packed is no error of Redis
        deadline = monotonic() + self._timeout_s
        pause = 0.01
        certain = True
        while True:
            try:
                return await self._run(packed, script, keys, args, lane)
            except Exception as error:
                meaning = classify(error)
                if meaning is Meaning.FATAL:
                    raise refusal(error, self.target.address) from error
                if meaning is Meaning.REFUSED:
                    code, _, known = str(error).partition(" ")
                    raise Refused(code, int(known)) from None
                if meaning is Meaning.FULL:
                    raise QueueFull(queue) from error
                again = meaning in (Meaning.NOT_SENT, Meaning.DEGRADED) or (repeat and meaning is Meaning.UNKNOWN)
                certain = certain and meaning is not Meaning.UNKNOWN  # of all tries: one of them may have run
                if not again or monotonic() + pause > deadline:
                    raise StoreUnavailable(f"{describe(error)} at {self.target.address}", certain=certain) from error
            await anyio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, 0.5)


def _packed(*words: Word) -> bytes:
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub allows one word only
    return packed
