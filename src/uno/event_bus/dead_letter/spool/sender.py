"""The sender: brings spooled letters into Redis when it is back, once each, and in order.

**Once.** Before a batch goes out its records are marked as tried, on disk: such a letter may be in Redis already, and
any may have been captured by an earlier call. The capture key tells for ``dedupe_window``: a repeat answers the first
letter's id. Letters older than that are looked for in their home shards first, one walk for all of a batch. What that
cannot see is a letter that was captured, and settled, while this one could not be sent for longer than the window: it
is captured a second time.

**In order.** Segments are sent from the oldest on, letters of one home shard in the order of their capture. A home
that takes none (its node is away, it is full, no replica confirms) is passed over for the rest of the walk, with all
its letters, so that it holds up no other.

**Refused for good.** When Redis refuses a batch in a way that time does not heal, it is halved until the letters are
found that are refused alone. Those stay in the spool and are tried again in each walk; letters behind them are sent,
also those of their ordering keys, and captures do not wait for them. A shard that refuses everything costs two calls a
letter and walk.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Final, Protocol

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import (
    ConfigError,
    DeadLetterError,
    LayoutMismatch,
    NotReplicated,
    PermissionDenied,
    QueueFull,
    StoreUnavailable,
)
from uno.event_bus.dead_letter.spool.folder import Folder
from uno.event_bus.dead_letter.spool.record import Record, State
from uno.event_bus.dead_letter.spool.segment import Segment
from uno.event_bus.dead_letter.store.lookup import Kept
from uno.event_bus.dead_letter.store.receiver import Receiver

__all__ = ["BATCH", "BATCH_BYTES", "Sender", "Walk", "batches_of"]

BATCH: Final = 100
"""Letters of one call to Redis, at most."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one, beyond its first letter: a hundred large letters would not arrive within ``operation_timeout``."""

OF_THE_HOME: Final = (ConfigError, LayoutMismatch, NotReplicated, PermissionDenied, QueueFull, StoreUnavailable)
"""Errors that tell of the shard, its node or this process, and not of the letter."""


class InThread(Protocol):
    """Runs a blocking function on the spool's thread of files."""

    async def __call__[**P, T](self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


@dataclass(slots=True)
class Walk:
    """One walk over the spool, and what it met."""

    receiver: Receiver
    away: set[int] = field(default_factory=set)
    """Homes that take no letter."""
    why: Exception | None = None
    """Why the first letter was not sent; None: all were, but those of homes that were away from the beginning."""

    def pass_over(self, home: int, why: Exception) -> None:
        """Send no more to this home in this walk."""
        self.away.add(home)
        self.why = self.why or why

    @property
    def all_away(self) -> bool:
        """Whether nobody takes letters."""
        return len(self.away) >= self.receiver.homes


@dataclass(slots=True)
class Outcome:
    """What became of a batch: offsets of records."""

    sent: set[int] = field(default_factory=set)
    untouched: set[int] = field(default_factory=set)
    """Certainly not captured by this try."""
    refused: set[int] = field(default_factory=set)
    """Refused for good, each alone."""


class Sender:
    """Sends what a spool holds."""

    def __init__(
        self,
        config: DeadLetterConfig,
        folder: Folder,
        in_thread: InThread,
        receiver: Callable[[], Awaitable[Receiver]],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._timeout_ms = int(config.operation_timeout * 1000)
        self._folder = folder
        self._in_thread = in_thread
        self._receiver = receiver
        self._stopping = stopping
        self._shards = 0
        """Of the queue, when homes were last noted."""
        self.sent = 0
        """Letters so far."""
        self.sending = False
        """A batch is on its way."""

    async def run(self, pass_over: frozenset[int] = frozenset()) -> Walk:
        """Send every letter that there is, but those of some homes.

        Raises what opening that does, and `OSError`.
        """
        walk = Walk(await self._receiver(), set(pass_over))
        if walk.receiver.homes != self._shards:
            await self._in_thread(self._folder.forget_homes)
            self._shards = walk.receiver.homes
        for segment in await self._in_thread(self._folder.segments):
            if self._stopping() or walk.all_away:
                break
            if not segment.homes or not segment.homes <= walk.away:
                await self._send_segment(walk, segment)
        return walk

    async def _send_segment(self, walk: Walk, segment: Segment) -> None:
        records, size = await self._in_thread(self._folder.load, segment)
        left: set[int] = set()
        for batch in batches_of(records):
            left |= await self._send(walk, segment, batch)
            if self._stopping() or walk.all_away:
                return
        await self._in_thread(self._folder.passed, segment, size, left)

    async def _send(self, walk: Walk, segment: Segment, batch: Sequence[Record]) -> set[int]:
        """Send what of a batch may be sent; return the homes that the others wait for."""
        there = await self._looked_up(walk, self._perhaps_forgotten(walk, batch))
        open_ = [r for r in batch if r.offset not in there and walk.receiver.home_of(r.letter) not in walk.away]
        untried = [record.offset for record in open_ if record.state is State.WAITING]
        if untried:
            await self._in_thread(segment.mark_tried, untried)
        outcome = await self._captured(walk, open_)
        done = there | outcome.sent
        if done:
            await self._in_thread(segment.mark_sent, sorted(done))
        untouched = outcome.untouched.intersection(untried)
        if untouched:
            await self._in_thread(segment.mark_waiting, sorted(untouched))
        self.sent += len(done)
        return {walk.receiver.home_of(r.letter) for r in batch if r.offset not in done | outcome.refused}

    # -- into Redis ----------------------------------------------------------------------------------

    async def _captured(self, walk: Walk, records: Sequence[Record]) -> Outcome:
        outcome = Outcome()
        self.sending = True
        try:
            await self._put(walk, records, outcome)
        finally:
            self.sending = False
        return outcome

    async def _put(self, walk: Walk, records: Sequence[Record], outcome: Outcome) -> None:
        """Capture letters; halve those of a home that are refused for good, until it is known which one it is."""
        if not records:
            return
        now_ms = _now_ms()
        results = await walk.receiver.add([record.to_send(now_ms) for record in records])
        refused: dict[int, list[Record]] = {}
        for record, result in zip(records, results, strict=True):
            home = walk.receiver.home_of(record.letter)
            if isinstance(result, str):
                outcome.sent.add(record.offset)
            elif result is None or isinstance(result, OF_THE_HOME):
                walk.pass_over(home, result or self._full(walk))
                if result is None or (isinstance(result, StoreUnavailable) and result.certain):
                    outcome.untouched.add(record.offset)
            else:
                walk.why = walk.why or result
                refused.setdefault(home, []).append(record)
        for home, theirs in refused.items():
            if len(theirs) == 1:
                outcome.refused.add(theirs[0].offset)
                continue
            half = len(theirs) // 2
            for part in (theirs[:half], theirs[half:]):
                if home not in walk.away:
                    await self._put(walk, part, outcome)

    def _full(self, walk: Walk) -> QueueFull:
        return QueueFull(self._config.queue, self._config.max_queue_size, walk.receiver.homes)

    # -- letters that may be there -------------------------------------------------------------------

    def _perhaps_forgotten(self, walk: Walk, batch: Sequence[Record]) -> list[Record]:
        """Return the letters that are so old that a capture of their keys may not be remembered."""
        window_ms = int(walk.receiver.window_s * 1000)
        before_ms = _now_ms() + self._timeout_ms - window_ms
        return [
            record
            for record in batch
            if record.captured_at_ms <= before_ms
            and (window_ms or record.state is State.TRIED)
            and walk.receiver.home_of(record.letter) not in walk.away
        ]

    async def _looked_up(self, walk: Walk, records: Sequence[Record]) -> set[int]:
        """Return the offsets of those that stand in the stream; a home that does not answer is passed over."""
        found: set[int] = set()
        homes: dict[int, list[Record]] = {}
        for record in records:
            homes.setdefault(walk.receiver.home_of(record.letter), []).append(record)
        for home, theirs in homes.items():
            try:
                kept = [Kept(each.letter, each.captured_at_ms, each.state is State.TRIED) for each in theirs]
                found |= {theirs[position].offset for position in await walk.receiver.known(kept, now_ms=_now_ms())}
            except DeadLetterError as error:
                walk.pass_over(home, error)
        return found


def batches_of(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records in batches, in order."""
    batches, size = list[list[Record]](), 0
    for record in records:
        size += record.size
        if not batches or len(batches[-1]) == BATCH or size > BATCH_BYTES:
            batches.append([])
            size = record.size
        batches[-1].append(record)
    return batches


def _now_ms() -> int:
    return int(time() * 1000)
