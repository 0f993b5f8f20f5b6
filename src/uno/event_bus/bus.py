"""`EventBus`: a small bus in this process that dead-letters what its subscriptions fail."""

import builtins
from collections.abc import Callable
from typing import Any

from uno.event_bus.dead_letter.codec import Encoded, type_name
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.failure import stable_module
from uno.event_bus.dead_letter.handlers import Handler
from uno.event_bus.dead_letter.queue import DeadLetterQueue

__all__ = ["EventBus"]


class EventBus:
    """Calls every subscription of an event; one that fails is dead-lettered, and only that one is tried again.

    A subscription is also the handler of its letters: a worker that runs the same subscriptions
    (`DeadLetterQueue.run`) finds it by its id.
    """

    def __init__(self, dead_letters: DeadLetterQueue) -> None:
        self._dead_letters = dead_letters
        self._subscriptions: dict[str, Handler] = {}

    def subscribe(
        self, type: str | builtins.type[Any] | None, handler: Callable[..., Any], *, id: str | None = None, **how: Any
    ) -> str:
        """Call the handler for events of a type (a name, a class, or None for all); return the subscription's id.

        `id` must be the same in every process; None: the handler's module and qualified name (of a script, the
        name under which a worker imports it). `how` goes to
        `DeadLetterQueue.add_handler` (`timeout`, `concurrency`, `retry`). A plain function runs in a thread. A
        parameter named ``letter`` gets the letter when the event is tried again, and None the first time.

        Raises `ConfigError` when the id is in use, or None for a handler without a name of its own (a `partial`).
        """
        subscription = id or _id_of(handler)
        if subscription in self._subscriptions:
            raise ConfigError(f"subscription {subscription!r} is in use; give another id=")
        handler_id = self._dead_letters.add_handler(handler, type, subscription, **how)
        found = next(known for known in self._dead_letters.handlers if known.id == handler_id)
        self._subscriptions[subscription] = found
        return subscription

    def unsubscribe(self, subscription: str) -> bool:
        """Remove a subscription; answer whether there was one. Its letters wait for another process's."""
        found = self._subscriptions.pop(subscription, None)
        return found is not None and self._dead_letters.remove_handler(found.id)

    async def publish(self, event: Any, *, type: str | None = None, event_id: str | None = None, **how: Any) -> None:
        """Call the event's subscriptions, one after another, in the order in which they subscribed.

        A subscription's `Exception` is captured (`how` goes to `DeadLetterQueue.add`) and goes no further. When
        it cannot be captured, or ``DLQ_ENABLED=false``, the others are called all the same; then the error is
        raised, several as an `ExceptionGroup`.
        """
        name = type or (event.type if isinstance(event, Encoded) else type_name(event.__class__))
        errors: list[Exception] = []
        for subscription, handler in list(self._subscriptions.items()):
            if handler.type in (None, name):
                try:
                    async with self._dead_letters.capture(
                        event, subscription_id=subscription, type=name, event_id=event_id, **how
                    ):
                        await handler.run(event, None)
                except Exception as error:
                    errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} subscriptions failed and were not captured", errors)


def _id_of(handler: Callable[..., Any]) -> str:
    name = getattr(handler, "__qualname__", "")
    if not name:
        raise ConfigError(f"handler of class {handler.__class__.__name__} has no name of its own: give id=")
    return f"{stable_module(handler.__module__)}.{name}"
