"""uno's event bus: `EventBus`, and the dead-letter queue that keeps what its subscriptions fail."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uno.event_bus.bus import EventBus

__all__ = ["EventBus"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `uno.event_bus.dead_letter` alone needs no bus.
    if name != "EventBus":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from uno.event_bus.bus import EventBus

    return EventBus
