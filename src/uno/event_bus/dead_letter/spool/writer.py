"""The writer: has spooled letters on disk before their callers go on; calls that come together share one fsync."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

from uno.event_bus.dead_letter.spool.folder import Full
from uno.event_bus.dead_letter.spool.record import Packed

__all__ = ["Writer"]

type Written = asyncio.Future[Full | OSError | None]
type Call = tuple[Sequence[Packed], Written]

type Append = Callable[[Sequence[Sequence[Packed]]], Awaitable[Sequence[Full | OSError | None]]]
"""Writes the records of several calls; returns what refused each, if anything. Raises `OSError`."""


class Writer:
    """Writes for the tasks of one event loop."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._calls: list[Call] = []
        self._writing: asyncio.Task[None] | None = None
        self.unwritten = Counter[int | None]()
        """Home shard (None: not known) → letters that are on their way to the disk."""

    async def write(self, records: Sequence[Packed]) -> Full | OSError | None:
        """Have records on disk, or return why not."""
        written: Written = asyncio.get_running_loop().create_future()
        self.unwritten.update(record.home for record in records)
        self._calls.append((records, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._run(), context=Context())
        return await asyncio.shield(written)  # who is cancelled does not take the others' letters along

    async def settled(self) -> None:
        """Wait until the disk has what is on its way there now."""
        if self._writing is not None:
            await self.write([])

    async def _run(self) -> None:
        try:
            while self._calls:
                calls, self._calls = self._calls, list[Call]()
                for (records, written), refusal in zip(calls, await self._written(calls), strict=True):
                    self.unwritten -= Counter(record.home for record in records)
                    if not written.done():
                        written.set_result(refusal)
        finally:
            self._writing = None

    async def _written(self, calls: Sequence[Call]) -> Sequence[Full | OSError | None]:
        try:
            return await self._append([records for records, _ in calls])
        except OSError as error:
            return [error] * len(calls)
