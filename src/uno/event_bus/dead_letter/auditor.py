"""The auditor: writes down what an operator is about to do, and afterwards what became of it.

Nothing is changed before the intent is written: what cannot be recorded is not done. The outcome is written whatever
has ended the work; where Redis does not take it, the intent stands alone, which says that the outcome is not known.
"""

import json
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

import anyio
import msgspec

from uno.event_bus.dead_letter.actor import current_actor
from uno.event_bus.dead_letter.bulk import BulkReport, OperatorVerb
from uno.event_bus.dead_letter.errors import DeadLetterError, StoreUnavailable
from uno.event_bus.dead_letter.store.audit import Audit, AuditEntry
from uno.event_bus.dead_letter.where import Where

__all__ = ["Deed", "by_ids", "matching", "recorded"]

logger = logging.getLogger(__name__)

LONGEST_LOGGED: Final = 256
"""Bytes of which letters, in a log line; the audit stream has more."""

OUTCOME_SECONDS: Final = 2.0
"""For the outcome to be written, also when the work was cancelled; then it is left out."""

LONGEST_WHICH: Final = 4096
"""Bytes of the letters, or the filter, that an entry names."""

LONGEST_VALUE: Final = 256
"""Bytes of one id or one value of a filter; of who acts, and of the request's id."""

LONGEST_WHY: Final = 1024
"""Bytes of an operator's reason."""

DONE: Final = "done"
CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class Deed:
    """What an operator is about to do."""

    verb: str
    which: str
    """JSON, of at most 4 KiB: see `AuditEntry.which`."""
    count: int | None = None
    """Letters that are named by id."""
    why: str = ""
    delay_ms: int = 0
    """Of a retry: due so much later."""


def by_ids(verb: OperatorVerb, ids: list[str]) -> Deed:
    """Return a deed on letters that are named."""
    which = _which("ids", ((str(id), None) for id in ids), len(ids))
    return Deed(verb.name, which, len(ids), verb.why, verb.delay_ms)


def matching(verb: OperatorVerb, where: Where) -> Deed:
    """Return a deed on every letter that matches."""
    values = [(value, name) for name, values in where.conditions().items() for value in values]
    return Deed(verb.name, _which("where", values, len(values)), None, verb.why, verb.delay_ms)


def _which(kind: str, values: Iterable[tuple[str, str | None]], count: int) -> str:
    """Return as many values as there is room for, by the field that they are of, and how many are left out."""
    named: dict[str | None, list[str]] = {}
    room, taken = LONGEST_WHICH - 100, 0
    for value, field in values:
        shown = clipped(value, LONGEST_VALUE)
        room -= len(json.dumps(shown, ensure_ascii=False).encode()) + 1 + (16 if field not in named else 0)
        if room < 0:
            break
        named.setdefault(field, []).append(shown)
        taken += 1
    told: dict[str, Any] = {kind: named.get(None, []) if kind == "ids" else named}
    if taken < count:
        told["left_out"] = count - taken
    return msgspec.json.encode(told).decode()


def clipped(text: str, most: int) -> str:
    """Return the text as UTF-8 can hold it, in at most so many bytes; a mark stands for what is left out."""
    encoded = text[: most + 1].encode("utf-8", "backslashreplace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - len("…".encode())].decode("utf-8", "ignore") + "…"


@asynccontextmanager
async def recorded(audit: Audit, deed: Deed, report: BulkReport | None = None) -> AsyncGenerator[None]:
    """Write the intent, run the body, and write the outcome with what the report says by then.

    Raises what has hindered the intent, and then the body does not run: a `StoreUnavailable` is ``certain``.
    """
    actor = current_actor()
    intent = AuditEntry(
        call=token_hex(4),
        phase="intent",
        request_id=clipped(actor.request_id, LONGEST_VALUE),
        who=clipped(actor.who, LONGEST_VALUE),
        verb=deed.verb,
        which=deed.which,
        count=deed.count,
        why=clipped(deed.why, LONGEST_WHY),
        delay_ms=deed.delay_ms,
    )
    try:
        await audit.audit(intent)
    except StoreUnavailable as error:
        if error.certain:
            raise
        # That the intent may be there is no matter: what it says has certainly not been done.
        raise StoreUnavailable(f"the audit stream did not take the intent: {error.why}", certain=True) from error
    _log(audit, intent, "begins")
    outcome = DONE
    try:
        yield
    except BaseException as error:
        outcome = _code_of(error)
        raise
    finally:
        await _conclude(audit, intent, outcome, report)


def _code_of(error: BaseException) -> str:
    if isinstance(error, DeadLetterError):
        return error.code
    return CANCELLED if isinstance(error, anyio.get_cancelled_exc_class()) else type(error).__name__


async def _conclude(audit: Audit, intent: AuditEntry, outcome: str, report: BulkReport | None) -> None:
    counts = report or BulkReport("")
    told: Mapping[str, Any] = {name: getattr(counts, name) for name in ("done", "changed", "leased", "not_found")}
    entry = msgspec.structs.replace(intent, phase="outcome", outcome=outcome, **told)
    why = f"not within {OUTCOME_SECONDS:g} s"
    with anyio.move_on_after(OUTCOME_SECONDS, shield=True):
        try:
            await audit.audit(entry)
            _log(audit, entry, f"{outcome}: {counts}")
            return
        except Exception as error:  # whatever it is, the verb's own result stands
            why = str(error)
    logger.warning(
        "the audit stream has no outcome of %s by %r, request %s: it is %s, %s; %s",
        intent.verb,
        intent.who,
        intent.request_id,
        outcome,
        counts,
        why,
        extra={"queue": audit.queue},
    )


def _log(audit: Audit, entry: AuditEntry, became: str) -> None:
    """Log a deed, too: logs are kept elsewhere than Redis, and their bound is another one."""
    how = f", due after {entry.delay_ms / 1000:g} s" if entry.verb == "retry" else ""
    logger.info(
        "queue %s: %s of %s%s, by %r, request %r: %s",
        audit.queue,
        entry.verb,
        clipped(entry.which, LONGEST_LOGGED),
        f", {entry.why!r}" if entry.why else how,
        entry.who,
        entry.request_id,
        became,
        extra={"queue": audit.queue},
    )
