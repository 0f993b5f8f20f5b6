"""Where a process of the harness connects to: a URL, or a cluster behind other addresses than its nodes tell."""

from typing import Any

from redis.asyncio.cluster import RedisCluster

from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue

__all__ = ["queue_of", "source_of"]


def source_of(url: str, remap: dict[str, str]) -> Any:
    """The URL; or with `remap` (address → address; ``*:*`` → host, of all others) a client that goes there instead."""
    if not remap:
        return url
    first = url.partition("://")[2].partition("/")[0].partition(",")[0]

    def reachable(address: tuple[str, int]) -> tuple[str, int]:
        known = f"{address[0]}:{address[1]}"
        host, _, port = remap.get(known, f"{remap.get('*:*', address[0])}:{address[1]}").rpartition(":")
        return host, int(port)

    host, _, port = first.rpartition(":")
    host, number = reachable((host, int(port)))
    return RedisCluster(host=host, port=number, address_remap=reachable)


def queue_of(settings: dict[str, Any]) -> DeadLetterQueue:
    """The queue of an actor's settings."""
    return DeadLetterQueue(
        source_of(settings["url"], settings.get("remap", {})), DeadLetterConfig(**settings["config"])
    )
