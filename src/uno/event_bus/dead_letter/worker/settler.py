"""The settler of one shard: gathers outcomes, and ends their leases in batches."""

import logging
from collections.abc import Callable
from time import time_ns

import anyio

from uno.event_bus.dead_letter.errors import LayoutMismatch, QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.letter import Letter, Verb
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.values import LARGEST_BATCH, Outcome, Verdict
from uno.event_bus.dead_letter.telemetry.log_fields import fields_of
from uno.event_bus.dead_letter.telemetry.recorder import Settled
from uno.event_bus.dead_letter.telemetry.tracing.tracers import harmless
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session

__all__ = ["Settler"]

logger = logging.getLogger(__name__)

GATHER_S = 0.002
"""How long outcomes wait for company."""

PAUSE_S = 0.2
"""Between tries while Redis is away; the heartbeat keeps the leases, or they run out."""


class Settler:
    """Outcomes pass through here once; one that the store could not take is kept until its lease is over."""

    def __init__(self, session: Session, shard: Shard, scheduled: Callable[[Shard, float], None] | None) -> None:
        self._session = session
        self._shard = shard
        self._scheduled = scheduled
        self._batch_size = min(session.config.batch_size, LARGEST_BATCH)
        self._trouble = session.outages.of(f"shard {shard.tag}")
        self._gathered: list[tuple[Held, Outcome]] = []
        self._some = anyio.Event()
        self._full = anyio.Event()

    def put(self, held: Held, outcome: Outcome) -> None:
        """Take the outcome of a lease; it is settled within a few ms."""
        self._gathered.append((held, outcome))
        count = len(self._gathered)
        if count == 1:
            self._some.set()
        elif count == self._batch_size:
            self._full.set()

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            await self._some.wait()
            if len(self._gathered) < self._batch_size:
                with anyio.move_on_after(GATHER_S):
                    await self._full.wait()
            batch = self._gathered[: self._batch_size]
            del self._gathered[: self._batch_size]
            if len(self._gathered) < self._batch_size:
                self._full = anyio.Event()
            if not self._gathered:
                self._some = anyio.Event()
            await self._settle(batch)

    async def _settle(self, batch: list[tuple[Held, Outcome]], unsure: bool = False) -> None:
        """Settle until it is done, or the leases are over; `unsure` says that a call without an answer may have."""
        began_ns = time_ns() if self._session.tracing is not None else 0
        told = False
        while batch:
            try:
                verdicts = await self._shard.settle(self._session.consumer, [outcome for _, outcome in batch])
            except (StoreUnavailable, QueueFull, LayoutMismatch) as error:
                unsure = unsure or (isinstance(error, StoreUnavailable) and not error.certain)
                self._trouble.failed(f"{len(batch)} outcomes wait to be settled", error)
                self._session.recorder.store_failed(self._session.config.queue)
                if began_ns and not told:  # at once, and once: an outage has many tries
                    self._trace(batch, began_ns, error)
                    told = True
                await anyio.sleep(PAUSE_S)
                batch = self._still_held(batch, unsure)
            except Exception as error:
                if began_ns:
                    self._trace(batch, began_ns, error)
                await self._settle_apart(batch, error, unsure)
                return
            else:
                self._trouble.over()
                if began_ns:
                    self._trace(batch, began_ns)
                self._note(batch, verdicts, unsure)
                return
        self._trouble.over()  # nothing is left that waits

    @harmless
    def _trace(self, batch: list[tuple[Held, Outcome]], began_ns: int, error: Exception | None = None) -> None:
        """Make the spans of a batch that was settled, or that could not be."""
        if self._session.tracing is not None:
            outcomes = [(Verb.RELEASE if held.put_back else outcome.verb, held.trace) for held, outcome in batch]
            address = self._shard.route.primary.target.address
            self._session.tracing.settled(outcomes, began_ns, self._shard.index, address, error)

    async def _settle_apart(self, batch: list[tuple[Held, Outcome]], error: Exception, unsure: bool) -> None:
        """Settle one by one what was refused for good together; give up what is refused alone.

        Its lease runs out, and the letter runs again: nothing else can be done for it here.
        """
        if len(batch) > 1:
            for entry in batch:
                await self._settle([entry], unsure)
            return
        [(held, outcome)] = batch
        logger.error(
            "letter %s: its outcome (%s) is refused, its lease will run out: %s",
            held.letter.id,
            outcome.verb,
            error,
            extra=fields_of(held.letter),
        )
        self._session.holdings.drop(held)

    def _still_held(self, batch: list[tuple[Held, Outcome]], unsure: bool) -> list[tuple[Held, Outcome]]:
        """Return the outcomes whose leases are not over; the others are given up."""
        kept = []
        for entry in batch:
            if entry[0].lease.still_mine():
                kept.append(entry)
            else:
                self._session.holdings.drop(entry[0])
        self._note_late(len(batch) - len(kept), unsure)
        return kept

    def _note_late(self, letters: int, unsure: bool) -> None:
        """Count outcomes that ended no lease, as far as is known.

        After a call without an answer it is not: that call may have ended them, and then the fence refuses its repeat.
        """
        queue, tag = self._session.config.queue, self._shard.tag
        if letters and unsure:
            self._session.report.unknown += letters
            self._session.recorder.unknown_settles(queue, letters)
            logger.warning(
                "shard %s: %d outcomes were settled or lost, not known which: the reply was lost", tag, letters
            )
        elif letters:
            self._session.report.stale += letters
            self._session.recorder.stale_settles(queue, letters)
            logger.warning("shard %s: %d outcomes came after their leases were over", tag, letters)

    def _note(self, batch: list[tuple[Held, Outcome]], verdicts: list[Verdict], unsure: bool) -> None:
        report = self._session.report
        late = 0
        for held, _ in batch:  # before anything of the application's is told: what that raises may hold no letter
            self._session.holdings.drop(held)
        for (held, outcome), verdict in zip(batch, verdicts, strict=True):
            if verdict is not Verdict.OK:
                late += 1
            elif outcome.verb is Verb.RESOLVE:
                report.resolved += 1
            elif held.put_back:
                report.released += 1
            else:
                self._count(outcome, held.letter)
        self._note_late(late, unsure)
        if self._session.records:
            ended = [_ended(*entry) for entry, verdict in zip(batch, verdicts, strict=True) if verdict is Verdict.OK]
            self._session.recorder.settled(self._session.config.queue, ended)

    def _count(self, outcome: Outcome, letter: Letter) -> None:
        report = self._session.report
        match outcome.verb:
            case Verb.RETRY:
                report.retried += 1
                self._tell_scheduled(outcome)
            case Verb.RELEASE:
                report.released += 1
                self._tell_scheduled(outcome)
            case Verb.DISCARD:
                report.discarded += 1
            case _:
                report.parked += 1
                self._tell_parked(letter, outcome.reason)
                self._session.parked(letter, outcome.reason)

    @harmless
    def _tell_parked(self, letter: Letter, why: str) -> None:
        ration = self._session.parked_lines
        if logger.isEnabledFor(logging.INFO) and ration.allows():
            more = f" ({ration.unsaid} more since the last such line)" if ration.unsaid else ""
            ration.unsaid = 0
            attempts = letter.history.attempts
            error = attempts[-1].error_type if attempts else ""
            fields = fields_of(letter) | {"error": error, "is_rationed": True}
            logger.info("letter %s is parked: %s%s", letter.id, why, more, extra=fields)

    def _tell_scheduled(self, outcome: Outcome) -> None:
        if self._scheduled is not None:
            self._scheduled(self._shard, outcome.delay_ms / 1000)


def _ended(held: Held, outcome: Outcome) -> Settled:
    """Return how a lease ended: what a replay puts back is released, and why a handler discards is its own text."""
    if held.put_back:
        return Settled(held.letter, Verb.RELEASE, "")
    return Settled(held.letter, outcome.verb, "" if outcome.verb is Verb.DISCARD else outcome.reason)
