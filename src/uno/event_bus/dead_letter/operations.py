"""Operators' verbs and reads over the whole queue: look, count, check, send back, remove."""

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from uno.event_bus.dead_letter import books
from uno.event_bus.dead_letter.auditor import Deed, by_ids, matching, recorded
from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
from uno.event_bus.dead_letter.bulk import (
    Answered,
    Bulk,
    BulkReport,
    OnAnswers,
    OperatorVerb,
    Which,
    chosen,
    discarding,
    home_of_id,
    parking,
    retrying,
)
from uno.event_bus.dead_letter.doctor import Finding, examine
from uno.event_bus.dead_letter.errors import ConfigError, LetterNotFound
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.rules import require_whole
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.audit import LARGEST_PAGE, AuditPage
from uno.event_bus.dead_letter.store.registry import WorkerInfo
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store
from uno.event_bus.dead_letter.where import Where

__all__ = ["Operations"]

SCANS_A_PAGE: Final = 4
"""Calls to shards for one page, each of which looks at 500 letters, or 4 MiB of them, at most."""

PAGE_BYTES: Final = 1024 * 1024
"""Bytes of payloads from which on a page of whole letters makes no further call, which may bring 4 MiB more."""

_CURSOR: Final = re.compile(r"(0|[1-9][0-9]{0,3}):(-|[0-9]{1,20}-[0-9]{1,20})")
"""Shard, and the stream id of the letter that was looked at last."""


class Operations:
    """The operators' side of a queue.

    Every verb that changes something is recorded in the queue's audit stream: its intent before, and if that cannot be
    written the verb raises so and nothing is changed; its outcome after. See `auditor`, and `actor` for who does it.
    """

    def __init__(self, store: Store, *, replica: bool = False) -> None:
        self._store = store
        self._replica = replica
        """Look at replicas, where nothing is decided by what they show."""

    async def _shard(self, letter_id: str) -> Shard:
        await self._store.open()
        shard = home_of_id(self._store, letter_id)
        if shard is None:
            raise LetterNotFound(letter_id)
        return shard

    async def get(self, letter_id: str) -> Letter:
        """Return an open letter; raises `LetterNotFound`."""
        letter = await browse.find(await self._shard(letter_id), letter_id, replica=self._replica)
        if letter is None:
            raise LetterNotFound(letter_id)
        return letter

    async def letters(
        self, where: Where | Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> AsyncGenerator[Letter]:
        """Yield the open letters that match, shard by shard, oldest capture first.

        Letters that come or change meanwhile may be missed or shown as they were. Without `whole`, payload and
        traceback are left out.
        """
        conditions = Where.of(where).conditions()
        await self._store.open()
        for shard in list(self._store.shards):
            cursor = b"-"
            while cursor:
                page = await browse.scan(shard, cursor, whole=whole, where=conditions, replica=self._replica)
                cursor = page.cursor
                for letter in page.letters:
                    yield letter

    async def page(
        self, where: Where | Mapping[str, Any] | None, cursor: str, most: int, *, whole: bool = True
    ) -> tuple[list[Letter], str]:
        """Return some of the open letters that match, and the cursor of the next page; empty after the last.

        The first page has the cursor ``""``. Work is bounded, so a page may have few letters, or none, and not be the
        last: it ends after `SCANS_A_PAGE` calls, and with `whole` before about 5 MiB and ten letters more. Raises
        `ConfigError` for what is no cursor.
        """
        conditions = Where.of(where).conditions()
        await self._store.open()
        index, after = _place(cursor, len(self._store.shards))
        letters = list[Letter]()
        for _ in range(SCANS_A_PAGE):
            shard, left = self._store.shards[index], most - len(letters)
            found = await browse.scan(shard, after, most=left, whole=whole, where=conditions, replica=self._replica)
            letters += found.letters
            after = found.cursor
            if not after:
                index, after = index + 1, b"-"
                if index == len(self._store.shards):
                    return letters, ""
            if len(letters) == most or (whole and sum(len(letter.payload) for letter in letters) >= PAGE_BYTES):
                break
        return letters, f"{index}:{after.decode()}"

    async def retry(self, letter_id: str, *, delay: float = 0.0) -> None:
        """Send a letter back to the workers, due after `delay` seconds; a parked one gets a new budget of retries.

        Raises `LetterNotFound`; `LetterStateConflict` when a worker has it.
        """
        await self._operate(retrying(delay), letter_id)

    async def park(self, letter_id: str, why: str) -> None:
        """Stop the retries of a letter. Raises `LetterNotFound`; `LetterStateConflict` when leased or parked."""
        await self._operate(parking(why), letter_id)

    async def discard(self, letter_id: str, why: str) -> None:
        """Remove a letter for good, also one that a worker has. Raises `LetterNotFound`."""
        await self._operate(discarding(why), letter_id)

    async def _operate(self, verb: OperatorVerb, letter_id: str) -> None:
        await self._store.open()
        answered: list[Answered] = []
        bulk = Bulk(self._store, verb, on_answers=answered.extend)
        async with recorded(self._store.audit, by_ids(verb, [letter_id]), bulk.report):
            await bulk.on([letter_id])
            for _, _, error in answered:
                if error is not None:
                    raise error

    async def retry_many(
        self, which: Which, *, delay: float = 0.0, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Send letters back to the workers, as `retry` does each: those of a list of ids, or all that a filter matches.

        Letters go 500 a call, with an answer for each: `on_answers` hears them batch by batch. One that is gone, or
        that a worker has, is an answer. Any other error ends the work where it is; to repeat the call is safe. With
        `dry_run` the answers are those that would be given, and nothing is changed.
        """
        return await self._operate_on_many(retrying(delay), which, dry_run, on_answers)

    async def discard_many(
        self, which: Which, why: str, *, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Remove letters for good, as `discard` does each; arguments and answers as of `retry_many`.

        A filter without any field matches every letter of the queue.
        """
        return await self._operate_on_many(discarding(why), which, dry_run, on_answers)

    async def _operate_on_many(
        self, verb: OperatorVerb, which: Which, dry_run: bool, on_answers: OnAnswers | None
    ) -> BulkReport:
        letters = chosen(which)
        await self._store.open()
        bulk = Bulk(self._store, verb, dry_run=dry_run, on_answers=on_answers)
        if dry_run:
            await bulk.on(letters)
            return bulk.report
        deed = matching(verb, letters) if isinstance(letters, Where) else by_ids(verb, letters)
        async with recorded(self._store.audit, deed, bulk.report):
            await bulk.on(letters)
        return bulk.report

    async def reshard(self, shards: int) -> int:
        """Give the queue more shards; return how many it has then. Raises as `Store.grow`."""
        await self._store.open()
        async with recorded(self._store.audit, Deed("reshard", json.dumps({"shards": shards}))):
            return (await self._store.grow(shards)).shards

    # -- the record ----------------------------------------------------------------------------------

    async def audit_page(self, cursor: str = "", *, limit: int = 100) -> AuditPage:
        """Return at most so many entries of the audit stream, 1 to 1000: the newest, or those older than a cursor's.

        Raises `ConfigError` for what is no cursor.
        """
        most = require_whole("limit", limit, "entries", 1, LARGEST_PAGE)
        await self._store.open()
        return await self._store.audit.audited(cursor, most=most, replica=self._replica)

    # -- counts and checks ---------------------------------------------------------------------------

    async def workers(self) -> list[WorkerInfo]:
        """Return what the workers that live tell of themselves: shards, letters held, host, process, concurrency."""
        await self._store.open()
        return await self._store.registry.roster()

    async def health(self) -> list[Finding]:
        """Look at server, memory, layout and every shard."""
        await self._store.open()
        return await examine(self._store)

    async def stats(self) -> QueueStats:
        """Return counts and totals: one bounded call a shard."""
        await self._store.open()
        return await books.stats_of(self._store, replica=self._replica)

    async def verify(self, *, on_progress: Callable[[float], None] | None = None) -> VerifyReport:
        """Check every invariant over the live queue, in bounded calls.

        `on_progress` hears after each of them how much is done: an estimate, from 0 to 1.
        """
        await self._store.open()
        return await books.verify(self._store, on_progress=on_progress)


def _place(cursor: str, shards: int) -> tuple[int, bytes]:
    """Return the shard and the place in its stream that a cursor names. Raises `ConfigError`."""
    if not cursor:
        return 0, b"-"
    found = _CURSOR.fullmatch(cursor)
    if found is None or int(found[1]) >= shards or any(int(part or 0) >= 2**64 for part in found[2].split("-")):
        raise ConfigError(f"cursor is {cursor[:60]!r}; allowed are those that a page of this queue gave, and none")
    return int(found[1]), found[2].encode()
