"""What every worker process of one demo must agree on, and how each opens the shop."""

from collections.abc import Callable
from typing import Final

import msgspec

from uno.event_bus import EventBus
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.demo.journal import Note
from uno.event_bus.dead_letter.demo.shop import Shop
from uno.event_bus.dead_letter.queue import DeadLetterQueue

__all__ = ["LEASE_S", "NOTES", "PLANS", "SHARDS", "Plan", "open_shop"]

SHARDS: Final = 4

LEASE_S: Final = 3.0
"""What a killed worker held comes back after this long."""


class Plan(msgspec.Struct, frozen=True):
    """The demo's queue and the state of its world."""

    url: str
    queue: str
    file: bool
    """The events are those of a file, not the shop's own."""
    opens_at: float
    """Unix time when the outage is over."""

    def config(self) -> DeadLetterConfig:
        """Return settings as a service has them, but for delays in tenths of seconds instead of minutes."""
        return DeadLetterConfig(
            queue=self.queue,
            shards=SHARDS,
            max_retries=6,  # 0.2 + 0.4 + 0.8 + 1.5 + 1.5 + 1.5 s: longer than the outage
            retry_delay=0.2,
            retry_max_delay=1.5,
            lease_seconds=LEASE_S,
            concurrency=20,
            batch_size=20,
            max_payload_bytes=16 << 20,
            shutdown_grace=5.0,
        )


PLANS: Final = msgspec.json.Decoder(Plan)
NOTES: Final = msgspec.json.Encoder()


def open_shop(plan: Plan, worker: str, note: Callable[[Note], None]) -> tuple[DeadLetterQueue, EventBus]:
    """Return queue and bus of one process, with the shop's handlers subscribed; nothing is connected yet."""
    dlq = DeadLetterQueue(redis=plan.url, config=plan.config())
    bus = EventBus(dlq)
    shop = Shop(note, worker=worker, opens_at=plan.opens_at)
    shop.subscribe(bus, file=plan.file)
    dlq.on_parked(shop.parked)
    return dlq, bus
