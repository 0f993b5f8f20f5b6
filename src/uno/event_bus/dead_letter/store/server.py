"""What kind of server it is, and whether letters are safe on it."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

from redis.exceptions import RedisError, ResponseError

from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable
from uno.event_bus.dead_letter.store.meaning import Meaning, classify, describe, refusal
from uno.event_bus.dead_letter.store.node import Lane, Node
from uno.event_bus.dead_letter.telemetry.snapshot import ServerUsage

__all__ = ["ServerFacts", "check_servers", "eviction_warning", "read_facts", "read_usage"]

logger = logging.getLogger(__name__)

FLOOR = (6, 2)
SAFE_POLICY = "noeviction"
CONFIRM_EARLY = {"redis": ((7, 4, 0), (7, 4, 3)), "valkey": ((8, 0, 0), (1000, 0, 0))}
"""From which version, to before which one, WAITAOF does not wait for the disk with ``appendfsync everysec``.

Source: redis/redis#13793; Valkey 8.0 has the same lines, and 9.1.2 is seen to do so
(tests/integration/test_durability.py).
"""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What INFO tells; empty texts and zeros where the server hides it."""

    name: str
    """``redis`` or ``valkey``."""
    version: str
    eviction_policy: str
    used_memory: int
    maxmemory: int
    is_cluster: bool
    """Whether it is a node of a cluster."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version's first three, to compare, whatever follows them; empty where the server hides it."""
        found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version)
        return tuple(int(part or 0) for part in found.groups()) if found else ()

    @property
    def may_evict(self) -> bool:
        """Whether the server deletes keys when its memory is full: whole streams of letters, then."""
        return self.eviction_policy not in ("", SAFE_POLICY)

    @property
    def confirms_early(self) -> bool:
        """Whether, with ``appendfsync everysec``, its WAITAOF confirms what the disk does not have yet."""
        first, fixed = CONFIRM_EARLY.get(self.name, ((), ()))
        return first <= self.numbers < fixed


async def read_facts(node: Node) -> ServerFacts:
    """Return what INFO tells of a server; nothing when the user may not ask for it."""
    found = await _info(node, "server") | await _info(node, "memory")
    return ServerFacts(
        found.get("server_name", "redis"),
        found.get("valkey_version") or found.get("redis_version", ""),
        found.get("maxmemory_policy", ""),
        int(found.get("used_memory", 0)),
        int(found.get("maxmemory", 0)),
        found.get("redis_mode", found.get("server_mode")) == "cluster",
    )


async def read_usage(node: Node) -> ServerUsage:
    """Return what one INFO tells of a server's resources. Raises `StoreUnavailable` when it tells nothing."""
    found = await _info(node, lane="commands")
    if not found:  # noughts would look like a server that has begun anew
        raise StoreUnavailable(f"INFO is refused by {node.target.name}", certain=True)

    def number(name: str) -> float:
        return float(found.get(name) or 0)

    return ServerUsage(
        used_memory=int(number("used_memory")),
        memory_limit=int(number("maxmemory") or number("total_system_memory")),
        cpu_s=number("used_cpu_user") + number("used_cpu_sys"),
        received_bytes=int(number("total_net_input_bytes")),
        sent_bytes=int(number("total_net_output_bytes")),
        may_evict=found.get("maxmemory_policy", SAFE_POLICY) != SAFE_POLICY,
    )


async def _info(node: Node, *section: str, lane: Lane = "heartbeats") -> dict[str, str]:
    """Return what INFO answers, of a section or of those that it has by default (6.2 takes only one)."""
    try:
        text = (await node.send("INFO", *section, lane=lane)).decode()
    except ResponseError:
        return {}
    except (RedisError, OSError) as error:
        if classify(error) in (Meaning.FATAL, Meaning.LOCKED_OUT):
            raise refusal(error, node.target.name) from error
        raise StoreUnavailable(f"{describe(error)} at {node.target.name}", certain=True) from error
    return dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))


def eviction_warning(facts: ServerFacts, node: Node) -> str:
    """Return the line about a server that may evict letters."""
    return (
        f"{facts.name} at {node.target.name} has maxmemory-policy {facts.eviction_policy}, which deletes "
        f"whole streams of letters when memory is full; set it to {SAFE_POLICY}"
    )


async def check_servers(nodes: Iterable[Node], *, strict: bool) -> ServerFacts:
    """Look at the servers before use: a policy that evicts is an error line, with `strict` a `ConfigError`.

    A node that does not answer is passed over as long as another one does: its shards wait for it alone.

    Raises `ConfigError` also for a server older than 6.2, which lacks the commands that the scripts use.
    """
    found: list[ServerFacts] = []
    away: StoreUnavailable | None = None
    for node in nodes:
        try:
            found.append(await _check(node, strict=strict))
        except StoreUnavailable as error:
            away = error
    if not found:
        assert away is not None, "no servers to check"
        raise away
    return found[0]


async def _check(node: Node, *, strict: bool) -> ServerFacts:
    facts = await read_facts(node)
    if facts.numbers and facts.numbers < FLOOR:
        raise ConfigError(f"{facts.name} at {node.target.name} is {facts.version}; allowed is 6.2 and later")
    if facts.may_evict:
        line = eviction_warning(facts, node)
        if strict:
            raise ConfigError(f"{line} (refused because DLQ_STRICT=true)")
        logger.error("%s", line)
    return facts
