"""The assignment: which shards this worker serves, so that all are served, and each worker blocks on few connections.

It is a hint; the consumer group is the truth: during a change a shard may have two workers, or none for a moment, and
no letter minds. Every worker enlists twice a heartbeat, learns who else lives, and computes its own part (`shares`).
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import anyio

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.store.registry import WorkerInfo
from uno.event_bus.dead_letter.worker.session import Session
from uno.event_bus.dead_letter.worker.shares import shares

__all__ = ["Assignment"]

logger = logging.getLogger(__name__)

BEATS_PER_LEASE = 6
"""How often a worker enlists."""

SILENT_AFTER_BEATS = 2.5
"""A worker that has not enlisted for so long is taken for dead: with the beat until others notice, that is within two
heartbeats, each of which is a third of a lease."""

RESIGN_S = 1.0
"""How long a stop waits for the registry; without its word the others notice by themselves."""


class Assignment:
    """Enlists this worker, and says what it serves: while the registry is away, what it served last.

    `changed` is called when that is another set of shards, or the queue has grown. While `is_able` says that the
    worker comes to take nothing, it leaves its shards to others, and serves them as well as it can.
    """

    def __init__(self, session: Session, changed: Callable[[], None], is_able: Callable[[], bool]) -> None:
        self._session = session
        self._changed = changed
        self._is_able = is_able
        self._unable_beats = 0
        self._registry = session.store.registry
        self._trouble = session.outages.of("registry")
        self._shards = 0
        """Of the queue, when it last computed its part."""
        self._started_at = time.time()
        self._leaving = anyio.Event()
        self.known = anyio.Event()
        """Set when this worker knows what it serves."""

    def begin(self) -> None:
        """Have the worker serve nothing until its part is known."""
        self._session.served.become(frozenset())

    def leave(self) -> None:
        """Resign, and end: the worker takes no more letters."""
        self._leaving.set()

    async def run(self) -> None:
        """Enlist until `leave`; then resign, unless the registry is away."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._enlist)
            await self._leaving.wait()
            group.cancel_scope.cancel()
        with suppress(DeadLetterError), anyio.move_on_after(RESIGN_S):
            await self._registry.resign(self._session.consumer)

    async def _enlist(self) -> None:
        while True:
            if not await self._beat():  # else it tells at once what it serves now
                await anyio.sleep(self._session.lease_s / BEATS_PER_LEASE)

    async def _beat(self) -> bool:
        """Enlist, and take over what follows from it; answer whether that is a change."""
        store = self._session.store
        ttl_ms = int(SILENT_AFTER_BEATS * self._session.lease_s * 1000 / BEATS_PER_LEASE)
        try:
            if self._is_to_resign():
                await self._registry.resign(self._session.consumer)
                return False
            enlisted = await self._registry.enlist(self._info(), ttl_ms=ttl_ms)
            if enlisted.epoch is not None and enlisted.epoch > store.layout.epoch:
                await store.follow(enlisted.epoch)
            elif enlisted.epoch is not None and enlisted.epoch < store.layout.epoch:
                await store.restore()
        except DeadLetterError as error:
            self._unable_beats = 0
            self._trouble.failed("who else works is not known, this worker serves what it served", error)
            workers = None
        else:
            self._trouble.over()
            workers = enlisted.workers
        return self._serve(workers)

    def _is_to_resign(self) -> bool:
        """Whether two beats in a row found the worker unable: after an outage its shards take a moment."""
        self._unable_beats = 0 if self._is_able() or not self.known.is_set() else self._unable_beats + 1
        if self._unable_beats == 2:
            logger.warning("this worker comes to take no letters; others are to serve its shards, too")
        return self._unable_beats >= 2

    def _serve(self, workers: list[str] | None) -> bool:
        """Serve this worker's part; everything, when it never heard of others."""
        served, shards = self._session.served, len(self._session.store.shards)
        if workers is not None:
            mine = shares(workers, shards)[self._session.consumer]
        elif self.known.is_set():
            return False
        else:
            mine = frozenset(range(shards))
        changed, has_grown = served.become(mine), shards > self._shards
        self._shards = shards
        if changed:
            logger.info("serving %d of %d shards: %s", len(mine), shards, " ".join(map(str, sorted(mine))))
        if changed or has_grown:
            self._changed()
        self.known.set()
        return changed

    def _info(self) -> WorkerInfo:
        session = self._session
        return WorkerInfo(
            worker=session.consumer,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            concurrency=session.config.concurrency,
            shards=tuple(sorted(session.served.of(len(session.store.shards)))),
            held=len(session.holdings),
        )
