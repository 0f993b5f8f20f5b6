"""Durable captures: what is asked of the servers before a capture is acknowledged.

WAIT and WAITAOF count the writes of the connection that they come on, so they follow the capture on its own
connection. They are no consensus: what they do not confirm may still be there, so the caller hears `NotReplicated`,
outcome unknown. A repeat by the same capture key writes, too (its count), so what is confirmed then covers the first.

With ``appendfsync everysec`` a disk's word takes until the next second's fsync: 1.0 s at most on an idle machine, and
2.0 s from replicas, who report once a second (measured on Redis 8.2). A shorter wait may miss it each time: the repeat
that follows it comes just after an fsync again.
"""

import logging
from typing import Any, Final, NamedTuple, Self

from redis.exceptions import RedisError, ResponseError

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError, NotReplicated, StoreUnavailable
from uno.event_bus.dead_letter.store.meaning import Meaning, classify, describe
from uno.event_bus.dead_letter.store.node import Node, packed
from uno.event_bus.dead_letter.store.server import ServerFacts, read_facts

__all__ = ["Durability", "flags_for"]

logger = logging.getLogger(__name__)

LEAST_S: Final = 3.0
"""The least `operation_timeout` with ``everysec``: half of it is what a primary's disk is given for its word."""

LEAST_WITH_REPLICAS_S: Final = 5.0
"""The same where replicas confirm, too."""


class Durability(NamedTuple):
    """What confirms a capture above the level ``memory``."""

    replicas: int
    on_disk: bool
    timeout_s: float
    """`operation_timeout`."""

    @classmethod
    def of(cls, config: DeadLetterConfig) -> Self | None:
        """Return what the settings ask for; None when the primary's memory is enough."""
        if config.durability == "memory":
            return None
        return cls(config.durable_replicas, config.durability == "fsynced", config.operation_timeout)

    @property
    def within_ms(self) -> int:
        """How long is waited. Half: the reply has to come before the connection is given up."""
        return int(self.timeout_s * 500)

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
        """Raise `ConfigError` when the node can never confirm what is asked of it, or would confirm what is not so.

        Where its user may not ask for ``appendfsync``, and the server's default would be refused, a warning says so.
        """
        if not self.on_disk:
            return
        name = node.target.name
        try:
            await node.send("WAITAOF", 1, 0, 1, lane="heartbeats")
            policy, facts = await _fsync_policy(node), await read_facts(node)
        except (RedisError, OSError, StoreUnavailable) as error:
            if isinstance(error, ResponseError) and classify(error) is Meaning.FATAL:
                raise ConfigError(
                    f"durability=fsynced needs Redis 7.2 or Valkey, with appendonly yes: {name} says "
                    f"{describe(error)!r}; allowed there are memory and replicated"
                ) from None
            return  # away for now: its captures will not be confirmed until it is back
        if why := self._broken_promise(policy or "everysec", facts):
            if policy:
                raise ConfigError(f"durability=fsynced cannot be held by {name}: {why}")
            logger.warning(
                "durability=fsynced: %s does not tell its appendfsync (CONFIG GET is refused); %s", name, why
            )

    def _broken_promise(self, policy: str, facts: ServerFacts) -> str:
        """Return why a server with this ``appendfsync`` cannot be relied on, and what is allowed; or an empty text."""
        least_s = LEAST_WITH_REPLICAS_S if self.replicas else LEAST_S
        if policy == "no":
            return f"it has appendfsync no; allowed is always{'' if facts.confirms_early else ', or everysec'}"
        if policy == "everysec" and facts.confirms_early:
            return (
                f"with appendfsync everysec, {facts.name} {facts.version} confirms captures up to a second before they "
                "are on disk (redis/redis#13793); allowed is always"
            )
        if policy == "everysec" and self.timeout_s < least_s:
            return (
                f"with appendfsync everysec, half of operation_timeout={self.timeout_s:g} is too short for its disk; "
                f"allowed are {least_s:g} and more, or appendfsync always"
            )
        return ""


async def _fsync_policy(node: Node) -> str:
    """Return when the node's AOF comes to its disk; an empty text where its user may not ask."""
    try:
        reply = await node.send("CONFIG", "GET", "appendfsync", lane="heartbeats")
    except ResponseError as error:
        if classify(error) is Meaning.FATAL:
            return ""
        raise
    pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    return str(pairs.get(b"appendfsync", b"").decode())


def flags_for(config: DeadLetterConfig) -> tuple[str, ...]:
    """Return the flags with which a server of our own can confirm what the settings ask for, Valkey as well."""
    return ("--appendfsync", "always") if config.durability == "fsynced" else ()
