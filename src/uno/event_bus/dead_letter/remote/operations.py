"""Operators' verbs and reads over a queue that is behind a service: the counterpart of `operations.Operations`."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from uno.event_bus.dead_letter.books import QueueStats, VerifyReport, Violation
from uno.event_bus.dead_letter.bulk import (
    LONGEST_ID,
    Answered,
    BulkReport,
    OnAnswers,
    Which,
    chosen,
    discarding,
    parking,
    retrying,
)
from uno.event_bus.dead_letter.doctor import Finding
from uno.event_bus.dead_letter.errors import LetterNotFound, LetterStateConflict, StoreUnavailable
from uno.event_bus.dead_letter.letter import Letter
from uno.event_bus.dead_letter.remote import wire
from uno.event_bus.dead_letter.remote.problems import error_of
from uno.event_bus.dead_letter.remote.records import letter_of
from uno.event_bus.dead_letter.remote.store import RemoteStore
from uno.event_bus.dead_letter.rules import require_whole
from uno.event_bus.dead_letter.store.audit import LARGEST_PAGE, AuditEntry, AuditPage
from uno.event_bus.dead_letter.store.registry import WorkerInfo
from uno.event_bus.dead_letter.store.values import Answer
from uno.event_bus.dead_letter.where import Where

__all__ = ["RemoteOperations"]

SMALL_PAGE: Final = 500
WHOLE_PAGE: Final = 50
"""Letters of one page; whole ones may be large, and a page has to come within ``operation_timeout``."""

_ID: Final = re.compile(r"[0-9]+-[0-9]+-[0-9]+")


class RemoteOperations:
    """The operators' side of a queue behind a service; verbs are sent once, reads as often as it takes."""

    def __init__(self, store: RemoteStore) -> None:
        self._client = store.client
        self._queue = store.queue

    # -- letters -------------------------------------------------------------------------------------

    async def get(self, letter_id: str) -> Letter:
        """Return an open letter; raises `LetterNotFound`."""
        return letter_of(await self._client.ask("GET", _path(letter_id), wire.LetterRecord))

    async def letters(
        self, where: Where | Mapping[str, Any] | None = None, *, whole: bool = True
    ) -> AsyncGenerator[Letter]:
        """Yield the open letters that match, shard by shard, oldest capture first, page by page."""
        cursor, most = "", WHOLE_PAGE if whole else SMALL_PAGE
        while True:
            letters, cursor = await self.page(where, cursor, most, whole=whole)
            for letter in letters:
                yield letter
            if not cursor:
                return

    async def page(
        self, where: Where | Mapping[str, Any] | None, cursor: str, most: int, *, whole: bool = True
    ) -> tuple[list[Letter], str]:
        """Return some of the open letters that match, and the cursor of the next page; as of `Operations.page`."""
        query: dict[str, str | int | list[str]] = {
            name: list(values) for name, values in Where.of(where).conditions().items()
        }
        query |= {"limit": most, "whole": "true" if whole else "false", "cursor": cursor}
        found = await self._client.ask("GET", "/letters", wire.LetterPage, query=query)
        return [letter_of(record) for record in found.letters], found.cursor

    async def retry(self, letter_id: str, *, delay: float = 0.0) -> None:
        """Send a letter back to the workers. Raises as `Operations.retry`."""
        retrying(delay)  # checks it
        await self._operate(letter_id, "retry", wire.Retry(delay_ms=int(delay * 1000)))

    async def park(self, letter_id: str, why: str) -> None:
        """Stop the retries of a letter. Raises as `Operations.park`."""
        parking(why)
        await self._operate(letter_id, "park", wire.Park(why))

    async def discard(self, letter_id: str, why: str) -> None:
        """Remove a letter for good. Raises as `Operations.discard`."""
        discarding(why)
        await self._operate(letter_id, "discard", wire.Discard(why))

    async def _operate(self, letter_id: str, verb: str, body: msgspec.Struct) -> None:
        await self._client.ask("POST", f"{_path(letter_id)}/{verb}", wire.Settled, body, repeats=False)

    # -- many letters --------------------------------------------------------------------------------

    async def retry_many(
        self, which: Which, *, delay: float = 0.0, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Send letters back to the workers. Arguments and answers as of `Operations.retry_many`."""
        retrying(delay)

        def body(letters: dict[str, Any]) -> msgspec.Struct:
            return wire.RetryMany(**letters, delay_ms=int(delay * 1000), dry_run=dry_run)

        return await self._operate_on_many("retry", which, body, dry_run, on_answers)

    async def discard_many(
        self, which: Which, why: str, *, dry_run: bool = False, on_answers: OnAnswers | None = None
    ) -> BulkReport:
        """Remove letters for good. Arguments and answers as of `Operations.discard_many`."""
        discarding(why)

        def body(letters: dict[str, Any]) -> msgspec.Struct:
            return wire.DiscardMany(**letters, why=why, dry_run=dry_run)

        return await self._operate_on_many("discard", which, body, dry_run, on_answers)

    async def _operate_on_many(
        self,
        verb: str,
        which: Which,
        body: Callable[[dict[str, Any]], msgspec.Struct],
        dry_run: bool,
        on_answers: OnAnswers | None,
    ) -> BulkReport:
        letters = chosen(which)
        report = BulkReport(self._queue, dry_run=dry_run)

        def hear(answered: Sequence[Answered]) -> Awaitable[None] | None:
            report.count(answered)
            if not isinstance(letters, Where):
                report.answers.update((letter_id, answer) for letter_id, answer, _ in answered)
            return None if on_answers is None else on_answers(answered)

        for part in _requests(letters):
            await self._last(f"/letters/{verb}", "report", body(part), on_answers=hear)
        return report

    async def _last(
        self,
        path: str,
        field: str,
        body: msgspec.Struct | None = None,
        *,
        on_answers: OnAnswers | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> wire.Answers:
        """Return the line that ends a reply, the one with this field, having passed on what came before it."""
        async with aclosing(self._client.lines("POST", path, wire.Answers, body)) as lines:
            async for line in lines:
                if line.problem is not None:
                    raise error_of(line.problem)
                if line.answers and on_answers is not None:
                    heard = on_answers([_answered(each) for each in line.answers])
                    if heard is not None:
                        await heard
                if line.progress is not None and on_progress is not None:
                    on_progress(line.progress)
                if getattr(line, field) is not None:
                    return line
        raise StoreUnavailable(f"{self._client.url}: the reply broke off")

    # -- the queue -----------------------------------------------------------------------------------

    async def stats(self) -> QueueStats:
        """Return counts and totals; the spool's are this machine's, added by the façade."""
        found = await self._client.ask("GET", "/stats", wire.Stats)
        fields: dict[str, Any] = msgspec.structs.asdict(found)
        return QueueStats(**fields | {"spool": None})

    async def verify(self, *, on_progress: Callable[[float], None] | None = None) -> VerifyReport:
        """Check every invariant over the live queue."""
        found = (await self._last("/verify", "verified", on_progress=on_progress)).verified
        assert found is not None
        if on_progress is not None:
            on_progress(1.0)
        fields = msgspec.structs.asdict(found)
        del fields["clean"]
        fields["violations"] = [Violation(**msgspec.structs.asdict(each)) for each in found.violations]
        return VerifyReport(**fields)

    async def workers(self) -> list[WorkerInfo]:
        """Return what the workers that live tell of themselves."""
        found = await self._client.ask("GET", "/workers", wire.Workers)
        return [WorkerInfo(**msgspec.structs.asdict(worker)) for worker in found.workers]

    async def reshard(self, shards: int) -> int:
        """Give the queue more shards; return how many it has then."""
        return (await self._client.ask("POST", "/shards", wire.QueueInfo, wire.Reshard(shards))).shards

    async def audit_page(self, cursor: str = "", *, limit: int = 100) -> AuditPage:
        """Return entries of the audit stream, the newest first; as of `Operations.audit_page`."""
        most = require_whole("limit", limit, "entries", 1, LARGEST_PAGE)
        found = await self._client.ask("GET", "/audit", wire.AuditPage, query={"limit": most, "cursor": cursor})
        return AuditPage(found.cursor, [AuditEntry(**msgspec.structs.asdict(record)) for record in found.records])

    async def health(self) -> list[Finding]:
        """Return what the service found of the queue."""
        found = await self._client.ask("GET", "/health", wire.Health)
        return [Finding(each.check, each.ok, each.detail) for each in found.checks]


def _path(letter_id: str) -> str:
    """Return the path of a letter. Raises `LetterNotFound` for what can be no letter's id."""
    if len(letter_id) > LONGEST_ID or not _ID.fullmatch(letter_id):
        raise LetterNotFound(letter_id)
    return f"/letters/{letter_id}"


def _requests(letters: Where | Sequence[str]) -> list[dict[str, Any]]:
    """Return what each request says of which letters are meant."""
    if isinstance(letters, Where):
        conditions: dict[str, Any] = {name: list(values) for name, values in letters.conditions().items()}
        return [{"where": wire.Filter(**conditions)}]
    return [{"ids": letters[at : at + wire.MOST_IDS]} for at in range(0, len(letters), wire.MOST_IDS)]


def _answered(one: wire.OneAnswer) -> Answered:
    error = None if one.problem is None else error_of(one.problem)
    assert error is None or isinstance(error, (LetterNotFound, LetterStateConflict))
    return Answered(one.id, Answer(one.answer), error)
