"""Queues of one's own: a name that nobody has, and the end of all their keys."""

import secrets
from typing import Final

import anyio

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.store.connect import seeds_of
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["erase_queue", "new_name"]

ERASING_S: Final = 10.0
"""Longest time to remove a queue's keys, seconds."""


def new_name(prefix: str) -> str:
    """Return a name that no other queue has: ``<prefix>-`` and 8 random hex digits."""
    return f"{prefix}-{secrets.token_hex(4)}"


async def erase_queue(url: str, config: DeadLetterConfig) -> str:
    """Remove every key of a queue, also when the caller is being cancelled; takes 10 s at most.

    Returns why keys are left, empty if none is. Never raises: why the queue is given up is what a user has to hear.
    """
    why = f"it took longer than {ERASING_S:g} s"
    with anyio.CancelScope(shield=True):
        store = Store(seeds_of(url), config)
        try:
            with anyio.move_on_after(ERASING_S):
                await store.erase()
                why = ""
        except Exception as error:
            why = str(error)
        finally:
            await store.close()
    return why
