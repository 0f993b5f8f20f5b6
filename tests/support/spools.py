"""What is in a spool, and in the queue that it is sent to."""

import json
from pathlib import Path

from tests.support.waiting import eventually, patiently
from uno.event_bus.dead_letter import DeadLetterQueue, Letter

__all__ = ["all_sent", "letters_of", "numbers", "spool_files"]


def spool_files(folder: Path) -> list[Path]:
    """The files of every spool below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".spool", ".lock", ".damaged"))


async def all_sent(queue: DeadLetterQueue, but: int = 0) -> None:
    """Wait until no letter waits in the spool, or so many."""

    async def sent() -> bool:
        stats = await queue.spool_stats()
        return stats is not None and stats.letters == but

    await eventually(sent)


async def letters_of(queue: DeadLetterQueue) -> list[Letter]:
    """The open letters, shard by shard, oldest first."""

    async def ask() -> list[Letter]:
        return [letter async for letter in queue.letters()]

    return await patiently(ask)


async def numbers(queue: DeadLetterQueue) -> list[int]:
    """The ``n`` of every open letter, sorted."""
    return sorted(json.loads(letter.payload)["n"] for letter in await letters_of(queue))
