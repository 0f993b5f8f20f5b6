"""Queues of one's own: a name that nobody has, and the end of all their keys."""

import secrets
from contextlib import suppress
from typing import Final

import anyio

from uno.event_bus.dead_letter.store.store import Store

__all__ = ["erase_queue", "new_name"]

ERASING_S: Final = 10.0
"""Longest time to remove a queue's keys, seconds."""

AGAIN_S: Final = 0.2
"""Between two tries: a node may be away, and its replica about to take over."""


def new_name(prefix: str) -> str:
    """Return a name that no other queue has: ``<prefix>-`` and 8 random hex digits."""
    return f"{prefix}-{secrets.token_hex(4)}"


async def erase_queue(store: Store) -> str:
    """Remove every key of a queue, also when the caller is being cancelled, and close its store; takes 10 s at most.

    An open store is the better one: it knows more nodes of a cluster than the URL names.
    Returns why keys are left, empty if none is. Never raises: why the queue is given up is what a user has to hear.
    """
    why = f"it took longer than {ERASING_S:g} s"
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(ERASING_S):
            while why:
                try:
                    await store.erase()
                    why = ""
                except Exception as error:
                    why = str(error)
                    await anyio.sleep(AGAIN_S)
                    with suppress(Exception):  # the next try says what is wrong
                        await store.topology.refresh()
        await store.close()
    return why
