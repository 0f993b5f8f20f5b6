"""Durable captures: what is asked of the servers before a capture is acknowledged.

WAIT and WAITAOF count the writes of the connection that they come on, so they follow the capture on its own
connection. They are no consensus: what they do not confirm may still be there, so the caller hears `NotReplicated`,
outcome unknown. A repeat by the same capture key writes, too (its count), so what is confirmed then covers the first.
"""

from typing import Any, NamedTuple, Self

from redis.exceptions import RedisError, ResponseError

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError, NotReplicated
from uno.event_bus.dead_letter.store.meaning import describe
from uno.event_bus.dead_letter.store.node import Node, packed

__all__ = ["Durability"]


class Durability(NamedTuple):
    """What confirms a capture above the level ``memory``."""

    replicas: int
    on_disk: bool
    within_ms: int

    @classmethod
    def of(cls, config: DeadLetterConfig) -> Self | None:
        """Return what the settings ask for; None when the primary's memory is enough."""
        if config.durability == "memory":
            return None
        # Half: the reply has to come before the connection is given up.
        within_ms = int(config.operation_timeout * 500)
        return cls(config.durable_replicas, config.durability == "fsynced", within_ms)

    @property
    def command(self) -> bytes:
        """The command that follows a capture on its connection."""
        if self.on_disk:
            return packed("WAITAOF", 1, self.replicas, self.within_ms)
        return packed("WAIT", self.replicas, self.within_ms)

    def refusal(self, letter_id: str, reply: Any) -> NotReplicated | None:
        """Return the error of a letter that the reply does not confirm; None when it does."""
        wanted = self.replicas + self.on_disk
        if isinstance(reply, ResponseError):  # UNBLOCKED: the node was a primary until just now
            got = 0
        elif self.on_disk:
            disk, replicas = reply
            got = min(int(disk), 1) + min(int(replicas), self.replicas)
        else:
            got = int(reply)
        return None if got >= wanted else NotReplicated(letter_id, wanted, got, "disks" if self.on_disk else "replicas")

    async def check(self, node: Node) -> None:
        """Raise `ConfigError` when the node can never confirm what is asked of it."""
        if not self.on_disk:
            return
        try:
            await node.send("WAITAOF", 1, 0, 1, lane="heartbeats")
        except ResponseError as error:
            raise ConfigError(
                f"durability=fsynced needs Redis 7.2 or Valkey, with appendonly yes: {node.target.name} says "
                f"{describe(error)!r}; allowed there are memory and replicated"
            ) from None
        except (RedisError, OSError):
            return  # away for now: its captures will not be confirmed until it is back
