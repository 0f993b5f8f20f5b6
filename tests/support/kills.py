"""What every kill test needs: a queue to fill, worker processes on it, and the check of the promises afterwards."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.crews import Crew, Leases
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue, DeadLetterReason
from uno.event_bus.dead_letter.books import QueueStats

QUEUE = "kills"


class Kills:
    """Crews of worker processes on one queue; the test process itself runs no handler."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.config: dict[str, Any] = {}
        self._runner = asyncio.Runner()
        self._queue: DeadLetterQueue | None = None

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queue is not None:
            self.ask(self._queue.aclose())
        self._runner.__exit__(kind, error, trace)

    def ask[T](self, question: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the queue's."""
        return self._runner.run(question)

    def crew(self, **settings: Any) -> Crew:
        """Worker processes with these settings; not started yet."""
        defaults = {"queue": QUEUE, "shards": 2, "lease_seconds": 1.0, "retry_delay": 0.05, "shutdown_grace": 5.0}
        self.config = defaults | settings
        return Crew(self.server.url, self.folder, self.config)

    @property
    def queue(self) -> DeadLetterQueue:
        if self._queue is None:
            self._queue = DeadLetterQueue(self.server.url, DeadLetterConfig(**self.config))
        return self._queue

    @property
    def leases(self) -> Leases:
        return Leases(self.server.client, QUEUE, self.config["shards"])

    @property
    def lease_s(self) -> float:
        return float(self.config["lease_seconds"])

    @property
    def tick_s(self) -> float:
        return min(1.0, self.lease_s / 3)

    def add(self, events: list[dict[str, Any]]) -> list[str]:
        """Capture events, due now."""
        return self.ask(self.queue.add_many(events, event_ids=[str(event["n"]) for event in events], delay=0))

    @property
    def stats(self) -> QueueStats:
        return self.ask(self.queue.stats())

    def wait_for(
        self, check: Callable[[QueueStats], Any], *, within_s: float, meanwhile: Callable[[], Any] = bool
    ) -> float:
        """Wait until the stats are so; return the seconds that took."""
        began = time.monotonic()
        while not check(stats := self.stats):
            assert time.monotonic() - began < within_s, stats
            meanwhile()
            time.sleep(0.01)
        return time.monotonic() - began

    def assert_promises(self, captured: int, *, parked: int = 0) -> None:
        """Exactly one end for each letter, nobody innocent parked, nothing lost, every invariant whole."""
        stats = self.stats
        assert stats.totals["captured"] == captured
        assert stats.totals["resolved"] == captured - parked
        assert (stats.open, stats.parked, stats.leased) == (parked, parked, 0), stats
        report = self.ask(self.queue.verify())
        assert report.clean, report
        assert report.lost_externally == 0

    def stalled(self) -> list[str]:
        """Ids of letters parked as STALLED."""

        async def find() -> list[str]:
            return [x.id async for x in self.queue.letters() if x.counters.reason == DeadLetterReason.STALLED]

        return self.ask(find())
