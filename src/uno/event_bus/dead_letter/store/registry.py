"""The registry: which workers of a queue live. No letter depends on it: it only says who had best serve what."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from uno.event_bus.dead_letter.errors import LayoutMismatch
from uno.event_bus.dead_letter.store.layout import queue_key, slot_of
from uno.event_bus.dead_letter.store.node import Word
from uno.event_bus.dead_letter.store.route import Refused, Route
from uno.event_bus.dead_letter.store.scripts import PROTOCOL, script
from uno.event_bus.dead_letter.store.topology import Topology

__all__ = ["Enlisted", "Registry", "WorkerInfo"]


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a worker tells of itself; unknown to the scripts. Fields are only added, each with a default."""

    worker: str = ""
    """Its consumer name."""
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    """Unix time, seconds."""
    concurrency: int = 0
    shards: tuple[int, ...] = ()
    """Shards that it serves."""
    held: int = 0
    """Letters that it holds leases on."""


class Enlisted(NamedTuple):
    """The reply of `enlist`."""

    epoch: int | None
    """Of the queue's layout; None when there is no record."""
    workers: list[str]
    """All that live, this one among them."""


class Registry:
    """The workers of one queue; its keys lie in one slot of their own.

    Methods raise `StoreUnavailable` when that slot's node does not answer: workers then keep what they serve.
    """

    def __init__(self, topology: Topology, queue: str) -> None:
        self._queue = queue
        self._route = Route(topology, slot_of(queue), queue)

    async def _call(self, name: str, args: Iterable[Word] = (), *, patience_s: float | None = None) -> Any:
        verb = script(name)
        keys = [queue_key(self._queue, key) for key in verb.keys]
        try:
            return await self._route.call(verb, keys, (PROTOCOL, 0, "", *args), lane="work", patience_s=patience_s)
        except Refused as refused:
            raise LayoutMismatch(
                self._queue, "script protocol", PROTOCOL, refused.known, "upgrade this process"
            ) from None

    async def enlist(self, info: WorkerInfo, *, ttl_ms: int) -> Enlisted:
        """Say that a worker lives, for `ttl_ms` from now on, and learn who else does."""
        epoch, workers = await self._call("enlist", [info.worker, ttl_ms, msgspec.json.encode(info)])
        return Enlisted(int(epoch) if epoch else None, [worker.decode() for worker in workers])

    async def resign(self, worker: str) -> bool:
        """Strike a worker off; answer whether it was on the roster. Tries for a second."""
        return bool(await self._call("resign", [worker], patience_s=1.0))

    async def roster(self) -> list[WorkerInfo]:
        """Return what the living workers tell of themselves, by name."""
        return [_info(worker.decode(), told) for worker, _, told in await self._call("roster")]


def _info(worker: str, told: bytes) -> WorkerInfo:
    try:
        return msgspec.json.decode(told, type=WorkerInfo)
    except msgspec.DecodeError:  # a stranger's row, or none
        return WorkerInfo(worker)
