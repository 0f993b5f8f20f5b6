"""The sender: brings spooled letters into Redis when it is back, once each, and in order.

**Once.** Before a batch goes out its records are marked as tried, on disk; a letter that was never tried is simply
captured. One that was may be there already: the capture key tells for ``dedupe_window``, so a repeat answers the
first letter's id. Past the window its home shard is looked through, from the time of the capture on, one walk for all
such letters of a batch. What that cannot see is a letter that was captured by a try whose reply got lost, and then
settled, while this process could not reach Redis for longer than the window: it is captured a second time.

**In order.** Segments are sent from the oldest on, letters of one home shard in the order of their capture. A home
that takes none is passed over for the rest of the round, with all its letters, so that a shard whose node is away
holds up no other.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Final, Protocol

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import DeadLetterError, QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.letter import Letter, NewLetter
from uno.event_bus.dead_letter.spool_files import Segment, SpoolFiles
from uno.event_bus.dead_letter.spool_record import Record, State
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Sender"]

logger = logging.getLogger(__name__)

BATCH: Final = 100
"""Letters of one call to Redis, at most."""

CLOCK_MARGIN_MS: Final = 60_000
"""How much earlier than its capture a letter is looked for: clocks differ by what is known, and drift."""


class Files(Protocol):
    """Runs a blocking function on the spool's thread of files."""

    async def __call__[**P, T](self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


@dataclass(slots=True)
class Walk:
    """One walk over the spool."""

    store: Store
    away: set[int] = field(default_factory=set)
    """Homes that took a letter not."""
    why: Exception | None = None
    """What the first of them said."""

    def pass_over(self, home: int, why: Exception) -> None:
        """Send no more to this home in this walk."""
        self.away.add(home)
        self.why = self.why or why

    @property
    def all_away(self) -> bool:
        """Whether nobody takes letters."""
        return len(self.away) >= self.store.layout.shards


class Sender:
    """Sends what a spool holds."""

    def __init__(
        self,
        config: DeadLetterConfig,
        files: SpoolFiles,
        in_thread: Files,
        open_store: Callable[[], Awaitable[Store]],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._window_ms = int(config.dedupe_window * 1000)
        self._timeout_ms = int(config.operation_timeout * 1000)
        self._files = files
        self._in_thread = in_thread
        self._open_store = open_store
        self._stopping = stopping
        self.sent = 0
        """Letters so far."""
        self.sending = False
        """A batch is on its way."""

    async def run(self) -> Exception | None:
        """Send every letter that there is; return why some were not sent, None when all were.

        Raises what opening the store does, and `OSError`.
        """
        if self._stopping():
            return None
        walk = Walk(await self._open_store())
        for segment in await self._in_thread(self._files.segments):
            if self._stopping() or walk.all_away:
                break
            if segment.left is None or not segment.left <= walk.away:
                await self._send_segment(walk, segment)
        await self._in_thread(self._files.sweep)
        return walk.why

    async def _send_segment(self, walk: Walk, segment: Segment) -> None:
        records, whole = await self._in_thread(self._files.load, segment)
        left: set[int] = set()
        batch: list[Record] = []
        for record in records:
            batch.append(record)
            if len(batch) == BATCH:
                left |= await self._send(walk, segment, batch)
                batch = []
            if self._stopping() or walk.all_away:
                return
        if batch:
            left |= await self._send(walk, segment, batch)
        segment.left = frozenset(left) if whole else None

    async def _send(self, walk: Walk, segment: Segment, batch: Sequence[Record]) -> set[int]:
        """Send what of a batch may be sent; return the homes of the rest."""
        there = await self._looked_up(walk, self._perhaps_forgotten(walk, batch))
        open_ = [r for r in batch if r.offset not in there and walk.store.home_of(r.letter) not in walk.away]
        untried = [record.offset for record in open_ if record.state is State.WAITING]
        if untried:
            await self._in_thread(self._files.mark, segment, untried, State.TRIED, sync=True)
        sent, again = await self._captured(walk, open_)
        await self._in_thread(self._files.mark, segment, [*there, *sent], State.SENT, sync=False)
        untouched = [offset for offset in untried if offset in again]
        if untouched:
            await self._in_thread(self._files.mark, segment, untouched, State.WAITING, sync=False)
        self.sent += len(there) + len(sent)
        done = {*there, *sent}
        return {walk.store.home_of(record.letter) for record in batch if record.offset not in done}

    async def _captured(self, walk: Walk, records: Sequence[Record]) -> tuple[list[int], set[int]]:
        """Capture letters; return the offsets of those that are captured, and of those that certainly are not."""
        if not records:
            return [], set()
        now_ms = _now_ms()
        self.sending = True
        try:
            results = await walk.store.add([record.to_send(now_ms) for record in records])
        finally:
            self.sending = False
        sent: list[int] = []
        again: set[int] = set()
        for record, result in zip(records, results, strict=True):
            if isinstance(result, str):
                sent.append(record.offset)
                continue
            if result is not None and not isinstance(result, DeadLetterError):
                raise result
            walk.pass_over(walk.store.home_of(record.letter), result or self._full(walk))
            if result is None or (isinstance(result, StoreUnavailable) and result.certain):
                again.add(record.offset)
        return sent, again

    def _full(self, walk: Walk) -> QueueFull:
        return QueueFull(self._config.queue, self._config.max_queue_size, walk.store.layout.shards)

    # -- letters that may be there -------------------------------------------------------------------

    def _perhaps_forgotten(self, walk: Walk, batch: Sequence[Record]) -> list[Record]:
        """Return the letters that may have been captured so long ago that their keys are not remembered."""
        before_ms = _now_ms() + self._timeout_ms - self._window_ms
        return [
            record
            for record in batch
            if record.state is State.TRIED
            and record.captured_at_ms <= before_ms
            and walk.store.home_of(record.letter) not in walk.away
        ]

    async def _looked_up(self, walk: Walk, records: Sequence[Record]) -> set[int]:
        """Return the offsets of those that stand in the stream; a home that does not answer is passed over."""
        found: set[int] = set()
        homes: dict[int, list[Record]] = {}
        for record in records:
            homes.setdefault(walk.store.home_of(record.letter), []).append(record)
        for home, theirs in homes.items():
            try:
                found |= await self._in_streams(walk.store, home, theirs)
            except StoreUnavailable as error:
                walk.pass_over(home, error)
        return found

    async def _in_streams(self, store: Store, home: int, records: Sequence[Record]) -> set[int]:
        # Where the queue has grown since, the home may have been another one.
        grown = store.layout.shards != store.layout.home_shards
        keys: set[str] = set()
        for shard in list(store.shards) if grown else [store.shards[home]]:
            keys |= await _keys_in(shard, records)
        return {record.offset for record in records if record.letter.capture_key in keys}


async def _keys_in(shard: Shard, records: Iterable[Record]) -> set[str]:
    """Return which capture keys of these letters have a letter in the shard, captured no earlier than the first.

    COST one call for each 500 letters that were captured since then.
    """
    ahead_ms = int((await browse.stats(shard))["now"]) - _now_ms()
    since_ms = max(0, min(record.captured_at_ms for record in records) + ahead_ms - CLOCK_MARGIN_MS)
    wanted: dict[str, dict[str, str]] = {}
    for record in records:
        name = "dedupe_key" if record.letter.dedupe_key else "event_id"
        wanted.setdefault(name, {})[record.letter.capture_key] = getattr(record.letter, name)
    keys: set[str] = set()
    for name, values in wanted.items():
        cursor = f"{since_ms}-0".encode()
        while cursor and not values.keys() <= keys:
            page = await browse.scan(shard, cursor, whole=False, where={name: list(set(values.values()))})
            cursor = page.cursor
            keys |= {_capture_key(letter) for letter in page.letters}
    return keys


def _capture_key(letter: Letter) -> str:
    return NewLetter(
        letter.event_id, "", b"", subscription=letter.subscription, dedupe_key=letter.dedupe_key
    ).capture_key


def _now_ms() -> int:
    return int(time() * 1000)
