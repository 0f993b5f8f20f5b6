"""The queue's layout record: how many shards it has, how long leases last; made by the first process, followed by all.

**Growth** multiplies the shard count on a live queue. The record says first that it grows; then the new shards adopt
the next epoch, then the old ones, which from then on refuse callers that know the earlier count; then the record has
both. So no two processes ever hash a capture key over different counts at the same time: when the first one may use
the new count, nobody can use the old one any more. A process that is refused reads the record, and if the growth is
not at its end, it ends it: every step may be taken twice, and the process that began it may be dead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from uno.event_bus.dead_letter.errors import ConfigError, LayoutMismatch, QueueNotFound
from uno.event_bus.dead_letter.store.layout import FORMAT, queue_key, slot_of
from uno.event_bus.dead_letter.store.node import Word
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["MOST_SHARDS", "Layout", "LayoutRecord"]

MOST_SHARDS: Final = 1024


@dataclass(slots=True)
class Layout:
    """What the record says; one object in a process, which `LayoutRecord` keeps up to date."""

    format: int
    shards: int
    home_shards: int
    """The count that the queue was made with."""
    lease_ms: int
    epoch: int
    growing: int = 0
    """The count that it grows to; 0 when it does not."""
    grown: int = 0
    """When it last grew, ms by the server's clock."""
    now: int = 0
    """When this was read, ms by the server's clock."""

    def check_growth(self, shards: int) -> None:
        """Raise `ConfigError` unless the queue can grow to this count."""
        if shards & (shards - 1) or not self.shards < shards <= MOST_SHARDS:
            raise ConfigError(
                f"the queue has {self.shards} shards and cannot have {shards}: allowed is a power of two above that, "
                f"at most {MOST_SHARDS}"
            )


class LayoutRecord:
    """Reads and changes the record of one queue."""

    def __init__(self, topology: Topology, queue: str, made_with: Layout) -> None:
        self._queue = queue
        self._made_with = made_with
        self._route = Route(topology, slot_of(queue), queue)

    async def _call(self, name: str, epoch: int, args: Iterable[Word]) -> Any:
        try:
            return await self._route.call(
                script(name), [queue_key(self._queue, "layout")], (PROTOCOL, epoch, "", *args), lane="work"
            )
        except Refused as refused:
            if refused.code != "UPGRADE":
                raise
            raise LayoutMismatch(
                self._queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
            ) from None

    async def layout(self, *, make: bool = False) -> Layout:
        """Read the record; with `make`, make it when there is none.

        Raises `LayoutMismatch` when its format is a later one, `QueueNotFound` when there is none.
        """
        made_with = self._made_with
        reply = await self._call("layout", 1, [made_with.shards, made_with.lease_ms] if make else ["", ""])
        if not reply:
            raise QueueNotFound(self._queue)
        told = {name.decode(): int(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}
        found = Layout(**{name: told[name] for name in Layout.__slots__ if name in told})
        if found.format > FORMAT:
            raise LayoutMismatch(self._queue, "format", FORMAT, found.format, "upgrade this process")
        return found

    async def grow(self, found: Layout, shards: int, step: str) -> bool:
        """Begin or end the growth of the record that was found; answer False when it has changed since."""
        try:
            await self._call("grow", found.epoch + 1, [shards, step])
        except Refused:
            return False
        return True
