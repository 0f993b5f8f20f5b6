"""Replay: run letters now, in this process, with its handlers."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic, time_ns

import anyio

from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.letter import Letter, LetterState
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH, Taken
from uno.event_bus.dead_letter.walk import Walk, position
from uno.event_bus.dead_letter.where import Where
from uno.event_bus.dead_letter.worker.crew import Crew, shielded
from uno.event_bus.dead_letter.worker.holdings import Before, Held, note_take
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Replay", "ReplayReport"]

logger = logging.getLogger(__name__)

REPLAYED_STATES = ("waiting", "scheduled")
"""States that a replay takes letters from unless the filter names others."""

SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0

TELL_EVERY_S = 0.2


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
    """Letters that a worker had, that changed meanwhile, or that could not be run here: without a handler, say.

    Those that this replay found idle stay as they were, parked or due when they were due.
    """
    dry_run: bool = False

    def __iter__(self) -> Iterator[int]:
        return iter((self.success, self.failed))


class Replay:
    """One replay. Letters are leased like any worker's, so running workers and other replays do no harm."""

    def __init__(
        self,
        session: Session,
        where: Where,
        *,
        batch_size: int,
        dry_run: bool,
        on_progress: Callable[[ReplayReport], None] | None = None,
    ) -> None:
        self._session = session
        self._where = where if where.state else replace(where, state=REPLAYED_STATES)
        self._batch_size = min(batch_size, LARGEST_BATCH)
        self._crew = Crew(session)
        self._report = ReplayReport(dry_run=dry_run)
        self._on_progress = on_progress or (lambda report: None)

    async def run(self) -> ReplayReport:
        """Run every letter that matches and was captured before now, once; with `dry_run` only count them.

        When it is cancelled, handlers are cancelled too; what was not run to its end goes back as it was. The same
        happens before `StoreUnavailable` is raised, when Redis has not answered for the length of a lease.
        """
        report = self._report
        if report.dry_run:
            async for _, letters in self._pages():
                report.matched += len(letters)
                self._tell()
            return report
        await shielded(self._serve, self._stop_now)
        self._count()
        report.skipped = report.matched - report.success - report.failed
        self._tell()
        return report

    def _count(self) -> None:
        done = self._session.report
        self._report.success = done.resolved + done.discarded
        self._report.failed = done.retried + done.parked

    async def _keep_telling(self) -> None:
        while True:
            self._count()
            self._tell()
            await anyio.sleep(TELL_EVERY_S)

    def _tell(self) -> None:
        """Let the caller know how far it is; what it raises is logged, because letters are in hand."""
        try:
            self._on_progress(self._report)
        except Exception:
            logger.exception("on_progress failed; the replay goes on")

    def _stop_now(self) -> None:
        self._crew.grace_s = 0.0
        self._session.holdings.shut()

    async def _serve(self) -> None:
        holdings = self._session.holdings
        async with self._crew.at_work() as roles:
            roles.start_soon(self._keep_telling)
            async for shard, letters in self._pages():
                self._report.matched += len(letters)
                # What nobody here handles stays where it is: a `take` would change its state for nothing.
                handled = {letter.id: letter for letter in letters if self._session.handlers.find(letter)}
                await self._run_letters(shard, handled)
                if holdings.is_shut:
                    return
            while holdings.unhandled and not holdings.is_shut:
                await holdings.changed()

    async def _pages(self) -> AsyncGenerator[tuple[Shard, list[Letter]]]:
        """Yield letters that match, page by page; none that was captured after its shard's first page."""
        # A copy: shards that a growth brings meanwhile have nobody here to settle for them, and no letter of before.
        for shard in list(self._session.store.shards):
            walk, began_ms = Walk(shard, self._where, most=self._batch_size), None
            while (page := await self._insist(shard, walk.next)) is not None:
                self._session.clock.heard(page.now_ms)
                began_ms = began_ms or page.now_ms
                letters = [letter for letter in page.letters if letter.captured_at_ms <= began_ms]
                if letters:
                    yield shard, letters
                if len(letters) < len(page.letters):
                    break

    async def _run_letters(self, shard: Shard, letters: Mapping[str, Letter]) -> None:
        """Take the letters by their ids and hand them to the handlers, until each was given or refused.

        A `take` stops at its byte budget and runs the intake a bounded way only: what it did not come to is named
        again, as long as it comes on.
        """
        ids, reached = list(letters), (0, 0)
        while ids:
            places = await self._session.holdings.reserve(len(ids))
            if not places:
                return
            named, ids = ids[:places], ids[places:]
            taken = await self._take(shard, named, places, letters)
            came, mark = {letter.id for letter in taken.letters}, position(taken.mark.decode())
            if came or mark > reached:
                missing = [id for id in named if id not in came]
                ids = [id for id in missing if taken.more or position(shard.stream_id(id)) > mark] + ids
            reached = mark

    async def _take(self, shard: Shard, named: list[str], places: int, scanned: Mapping[str, Letter]) -> Taken:
        held: list[Held] = []
        unheard = False
        began_ns = time_ns()

        async def take() -> Taken:
            nonlocal unheard
            if unheard:
                await self._put_back(shard, named, scanned)
            try:
                return await shard.take(self._session.consumer, len(named), ids=named)
            except StoreUnavailable as error:
                unheard = unheard or not error.certain
                raise

        try:
            taken = await self._insist(shard, take)
            self._session.clock.heard(taken.now_ms)
            held = [
                Held(letter, letter.lease, shard, before=_before(scanned[letter.id], letter))
                for letter in taken.letters
                if letter.lease
            ]
        except StoreUnavailable:
            if unheard:
                with suppress(StoreUnavailable):
                    await self._put_back(shard, named, scanned)
            raise
        finally:
            self._session.holdings.hold(places, held)
        if held and self._session.tracing is not None:
            note_take(self._session.tracing, shard, held, began_ns)
        self._crew.dispatch(held)
        return taken

    async def _put_back(self, shard: Shard, named: list[str], scanned: Mapping[str, Letter]) -> None:
        """Put back the letters that a `take` has leased whose reply was lost: they are to be taken again."""
        consumer, now_ms = self._session.consumer, self._session.clock.now_ms()
        known = [(held.letter.id, held.lease.token) for held in self._session.holdings.all() if held.shard is shard]
        found = [pair for pair in (await shard.extend(consumer, known)).forgotten if pair[0] in named]
        befores = [(_before(scanned[id]), id, token) for id, token in found]
        await shard.settle(consumer, [before.put_back(id, token, now_ms) for before, id, token in befores if before])

    async def _insist[T](self, shard: Shard, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again while Redis is away, for the length of a lease: then what is in hand is lost anyway."""
        pause, began = SHORTEST_PAUSE_S, monotonic()
        while True:
            try:
                return await ask()
            except StoreUnavailable as error:
                self._session.recorder.store_failed(self._session.config.queue)
                if self._session.holdings.is_shut or monotonic() - began >= self._session.lease_s:
                    raise
                logger.warning("shard %s: the replay waits: %s", shard.tag, error, extra={"shard": shard.index})
            await anyio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)


def _before(scanned: Letter, taken: Letter | None = None) -> Before | None:
    """Return how the letter was when it was scanned; None when something had happened to it when it was taken."""
    # A release alone is nothing: it may be this replay's own.
    if taken and scanned.counters._replace(releases=0) != taken.counters._replace(releases=0):
        return None
    reason = scanned.counters.reason
    match scanned.state:
        case LetterState.PARKED:
            return Before(True, 0, reason)
        case LetterState.SCHEDULED:
            return Before(False, scanned.due_ms, reason)
        case LetterState.WAITING:
            return Before(False, scanned.due_ms, reason)
        case _:
            return None
