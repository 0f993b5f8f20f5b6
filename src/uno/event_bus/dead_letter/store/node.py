"""One Redis server: its connection pools, and how a command or a script is sent to it, once."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import anyio
from hiredis import pack_command
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoScriptError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from uno.event_bus.dead_letter.store.connect import BLOCK_MARGIN_S, Target
from uno.event_bus.dead_letter.store.handshake import why_not_connected
from uno.event_bus.dead_letter.store.meaning import NotConnected
from uno.event_bus.dead_letter.store.scripts import Script

__all__ = ["LONGEST_BLOCK_S", "Lane", "Manner", "Node", "Word", "packed"]

LONGEST_BLOCK_S: Final = 2.0
"""Blocking reads are short, so that a dead connection is noticed."""

type Word = str | bytes | int

type Lane = Literal["commands", "work", "reads", "heartbeats"]
"""Which connections a call takes: captures and operators, a worker's own calls, reads that block, heartbeats.

None of them starves another: a flood of captures cannot delay a settle, nor either of them the renewal of a lease.
"""

SIZES: Final[dict[Lane, int]] = {"commands": 16, "work": 2, "reads": 1024, "heartbeats": 1}
"""Connections of a node per lane, at most: a worker has three, and one for each shard that it waits for."""


def packed(*words: Word) -> bytes:
    """Return a command as it goes over the wire."""
    command: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub allows one word only
    return command


_ASKING: Final = packed("ASKING")


class Manner(NamedTuple):
    """How a command is sent, besides where to."""

    asking: bool = False
    """The slot is on its way to this node."""
    confirm: bytes = b""
    """A command that follows on the same connection, because it tells of that connection's writes (WAIT)."""


class Node:
    """One server. What it raises is what redis-py raises; `Route` knows what that means."""

    def __init__(
        self, target: Target, *, timeout_s: float = 5.0, client_name: str = "uno-dlq", readonly: bool = False
    ) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._client_name = client_name
        self._readonly = readonly
        self._plain = False
        self._retired = False
        self._pools: dict[Lane, ConnectionPool] = {}
        self._turns: dict[Lane, anyio.Semaphore] = {}
        """One turn for each connection of a pool."""

    def __repr__(self) -> str:
        return f"Node({self.target.name})"

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

    async def retire(self) -> None:
        """Close every connection that is not in use; one that is, when it is free."""
        self._retired = True
        await self.drop_idle()

    async def drop_idle(self, lane: Lane | None = None) -> None:
        """Close every connection (of a lane) that is not in use: the next call looks up the address anew."""
        for pool in [pool for its, pool in self._pools.items() if lane in (None, its)]:
            await pool.disconnect(inuse_connections=False)

    def pool(self, lane: Lane) -> ConnectionPool:
        """Return the pool of a lane; it connects when it is first used."""
        pool = self._pools.get(lane)
        if pool is None:
            self._turns[lane] = anyio.Semaphore(SIZES[lane], fast_acquire=True)
            pool = self._pools[lane] = self.target.pool(
                name=self._client_name,
                size=SIZES[lane],
                timeout_s=LONGEST_BLOCK_S + BLOCK_MARGIN_S if lane == "reads" else self._timeout_s,
                readonly=self._readonly,
            )
        return pool

    async def send(self, *words: Word, lane: Lane = "commands", asking: bool = False) -> Any:
        """Send one command once and return its reply as Redis gave it.

        Raises what redis-py raises. A connection that was interrupted between command and reply is closed, so
        that no other caller ever reads that reply. With `asking`, also for a slot that is on its way to this node.
        """
        return await self._reply(packed(*words), lane, Manner(asking))

    async def _reply(self, command: bytes, lane: Lane, manner: Manner) -> Any:
        """Return the reply to one command; with a confirmation, that and the reply to it."""
        asked = [_ASKING, command] if manner.asking else [command]
        replies = await self._exchange([*asked, manner.confirm] if manner.confirm else asked, lane)
        reply = replies[len(asked) - 1]  # ASKING itself may have been refused: the command's reply tells more
        if isinstance(reply, ResponseError):
            raise reply
        return (reply, replies[-1]) if manner.confirm else reply

    async def _exchange(self, commands: list[bytes], lane: Lane) -> list[Any]:
        """Send commands in one write on one connection; return the replies, errors of the server among them."""
        pool, turns = self.pool(lane), self._turns[lane]
        await self._turn(turns, lane)
        try:
            return await self._sent(commands, pool, await self._connected(pool))
        finally:
            turns.release()

    async def _sent(self, commands: list[bytes], pool: ConnectionPool, connection: Any) -> list[Any]:
        replies: list[Any] = []
        try:
            await connection.send_packed_command(commands, check_health=False)
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:
            with anyio.CancelScope(shield=True):
                await connection.disconnect(nowait=True)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                if self._retired:
                    await connection.disconnect(nowait=True)
                await pool.release(connection)

    async def _turn(self, turns: anyio.Semaphore, lane: Lane) -> None:
        """Wait until a connection is free, first come, first served: in redis-py's pools newcomers pass who waits."""
        try:
            turns.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(self._timeout_s) as patience:
                await turns.acquire()
            if patience.cancelled_caught:
                busy = f"all {SIZES[lane]} connections were in use for {self._timeout_s:g} s"
                raise NotConnected(busy) from None

    async def _connected(self, pool: ConnectionPool) -> Any:
        try:
            return await pool.get_connection()  # type: ignore[no-untyped-call]
        except (RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError) as error:
            # redis-py's pool hides what was refused behind a plain ConnectionError.
            for refused in (error, error.__cause__, error.__context__):
                if isinstance(refused, AuthenticationError | AuthorizationError):
                    raise type(refused)(*refused.args) from None  # itself it would be its own context
            raise NotConnected(why_not_connected(error, pool.connection_class)) from error

    def by_sha(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> bytes:
        """Return the script's call by hash, packed for `run`."""
        return packed("EVALSHA", script.plain_sha if self._plain else script.sha, len(keys), *keys, *args)

    async def run(
        self, by_sha: bytes, script: Script, keys: Sequence[str], args: Sequence[Word], lane: Lane, manner: Manner
    ) -> Any:
        """Run a script once: by its hash, then with its source when the node does not know it."""
        try:
            return await self._reply(by_sha, lane, manner)
        except NoScriptError:
            return await self._evaluate(script, keys, args, lane, manner)

    async def _evaluate(
        self, script: Script, keys: Sequence[str], args: Sequence[Word], lane: Lane, manner: Manner
    ) -> Any:
        if not self._plain and script.source is not script.plain_source:
            try:
                return await self._reply(packed("EVAL", script.source, len(keys), *keys, *args), lane, manner)
            except ResponseError as error:
                # Redis 6.2 takes the `#!lua` line for a syntax error; nothing ran.
                if "compiling script" not in str(error):
                    raise
                self._plain = True
        return await self._reply(packed("EVAL", script.plain_source, len(keys), *keys, *args), lane, manner)
