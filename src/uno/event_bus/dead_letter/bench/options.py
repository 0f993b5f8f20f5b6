"""What is to be measured: the settings of one benchmark, with what does not go together."""

import os
from dataclasses import dataclass, replace
from typing import Any, Final

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError

__all__ = ["RETRY_S", "Options"]

RETRY_S: Final = 0.1
"""A letter that fails is due again after this long."""

LEASE_S: Final = 5.0
"""Leases of the benchmark's queue, unless ``DLQ_LEASE_SECONDS`` says otherwise: what a failover costs is over soon."""

HEADROOM_BYTES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One benchmark. Raises `ConfigError`, in one line, for what does not go together."""

    redis_url: str | None = None
    """A server or a cluster; None: ``DLQ_REDIS_URL``, else ``REDIS_URL``, else one of its own."""
    cluster: bool = False
    """Start a cluster of its own, three primaries with a replica each, whatever the variables say."""
    queue: str | None = None
    """A name that no queue has; None: one is made up."""
    workers: int = 2
    producers: int = 1
    shards: int | None = None
    letters: int = 20_000
    payload_bytes: int = 300
    fail_rate: float = 0.1
    """Share of the letters that fail once and are retried."""
    concurrency: int = 16
    """Handlers at a time in a worker, captures at a time in a producer."""
    durability: str | None = None
    kill_primary: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if self.cluster and self.redis_url is not None:
            raise ConfigError("--cluster starts a cluster of its own: leave --redis-url out, or leave --cluster out")
        if self.kill_primary and not self.cluster:
            raise ConfigError(
                "--kill-primary kills only a node that the benchmark has started itself: "
                "say --cluster, and leave --redis-url out"
            )

    def given_url(self) -> str | None:
        """Return the URL of the server to measure; None when it is to be one of its own."""
        return None if self.cluster else DeadLetterConfig.from_env(redis_url=self.redis_url).redis_url

    def config(self, queue: str) -> DeadLetterConfig:
        """Return the settings of every process: what the options say, else the variables.

        Lease, timeouts and batch size are thus those that the user's own workers have. The URL is left out.
        """
        known: dict[str, Any] = {
            "queue": queue,
            "shards": self.shards,
            "concurrency": self.concurrency,
            "durability": self.durability,
            "max_retries": 20,
            "retry_delay": RETRY_S,
            "retry_max_delay": RETRY_S,
            "max_queue_size": 0,
            "lease_seconds": None if os.environ.get("DLQ_LEASE_SECONDS") else LEASE_S,
            "enabled": True,
        }
        config = DeadLetterConfig.from_env(**known)
        enough_bytes = max(config.max_payload_bytes, self.payload_bytes + HEADROOM_BYTES)
        # A spool would acknowledge what no server has, and outlive the queue.
        return replace(config, redis_url=None, app=None, spool_dir=None, max_payload_bytes=enough_bytes)
