"""Replay: run letters now, in this process, with its handlers."""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace

from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import LARGEST_BATCH, Shard
from uno.event_bus.dead_letter.where import Where
from uno.event_bus.dead_letter.worker.crew import Crew, shielded
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Replay", "ReplayReport"]

REPLAYED_STATES = ("waiting", "scheduled")
"""States that a replay takes letters from unless the filter names others."""


@dataclass(slots=True)
class ReplayReport:
    """What a replay did; unpacks as ``success, failed``."""

    matched: int = 0
    """Letters that the filter chose."""
    success: int = 0
    """Letters whose handler returned, or decided to discard them."""
    failed: int = 0
    """Letters whose handler failed: they are scheduled again or parked, by the policy."""
    skipped: int = 0
    """Letters that a worker had, that changed meanwhile, or that nobody here handles."""
    dry_run: bool = False

    def __iter__(self) -> Iterator[int]:
        return iter((self.success, self.failed))


class Replay:
    """One replay. Letters are leased like any worker's, so running workers and other replays do no harm."""

    def __init__(self, session: Session, where: Where, *, batch_size: int, dry_run: bool) -> None:
        self._session = session
        self._conditions = (where if where.state else replace(where, state=REPLAYED_STATES)).conditions()
        self._batch_size = min(batch_size, LARGEST_BATCH)
        self._crew = Crew(session)
        self._report = ReplayReport(dry_run=dry_run)

    async def run(self) -> ReplayReport:
        """Run every letter that matches and was captured before now, once; with `dry_run` only count them.

        When it is cancelled, handlers are cancelled too, and their letters released.
        """
        report = self._report
        if report.dry_run:
            async for _, ids in self._pages():
                report.matched += len(ids)
            return report
        await shielded(self._serve, self._stop_now)
        done = self._session.report
        report.success = done.resolved + done.discarded
        report.failed = done.retried + done.parked
        report.skipped = report.matched - report.success - report.failed
        return report

    def _stop_now(self) -> None:
        self._crew.grace_s = 0.0
        self._session.holdings.shut()

    async def _serve(self) -> None:
        holdings = self._session.holdings
        async with self._crew.at_work():
            async for shard, ids in self._pages():
                self._report.matched += len(ids)
                await self._run_letters(shard, ids)
                if holdings.is_shut:
                    return
            while holdings.unhandled and not holdings.is_shut:
                await holdings.changed()

    async def _pages(self) -> AsyncGenerator[tuple[Shard, list[str]]]:
        """Yield ids of letters that match, page by page; none that was captured after its shard's first page."""
        for shard in self._session.store.shards:
            cursor, began_ms = b"-", None
            while cursor:
                page = await browse.scan(shard, cursor, most=self._batch_size, whole=False, where=self._conditions)
                cursor, began_ms = page.cursor, began_ms or page.now_ms
                ids = [letter.id for letter in page.letters if letter.captured_at_ms <= began_ms]
                if ids:
                    yield shard, ids
                if len(ids) < len(page.letters):
                    break

    async def _run_letters(self, shard: Shard, ids: list[str]) -> None:
        while ids:
            places = await self._session.holdings.reserve(len(ids))
            if not places:
                return
            named, ids = ids[:places], ids[places:]
            letters: list[Held] = []
            try:
                taken = await shard.take(self._session.consumer, len(named), ids=named)
                self._session.clock.heard(taken.now_ms)
                letters = [Held(letter, letter.lease, shard) for letter in taken.letters if letter.lease]
            finally:
                self._session.holdings.hold(places, letters)
            self._crew.dispatch(letters)
