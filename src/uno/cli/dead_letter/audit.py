"""`audit`: what operators have done to the queue, and who."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option
from uno.cli.dead_letter.output import Records, console, fit, format_of, note, table, when
from uno.cli.dead_letter.session import with_queue
from uno.cli.text import one_line

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue
    from uno.event_bus.dead_letter.store.audit import AuditEntry

ROWS_OF_A_TABLE: Final = 100

WIDE: Final = 110
"""Columns of a terminal from which the table also shows why, and in which request."""

LONGEST_CELL: Final = 80

IDS_SHOWN: Final = 1

NO_OUTCOME: Final = "no outcome"


@click.command("audit", cls=Command)
@click.option("--request", metavar="ID", help="Only what was done in this request.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    help=f"At most so many, 0 for all. Default: {ROWS_OF_A_TABLE} in a table, all in JSON.",
)
@output_option
@with_queue
async def audit(queue: "DeadLetterQueue", /, *, request: str | None, limit: int | None, output: str | None) -> None:
    """Show what operators have done to the queue, and who: the newest first, times in UTC.

    A table has one row for each call of a verb; "no outcome" is one that still runs, or that was killed. JSON has both
    entries of a call, its outcome and then its intent. The queue keeps the last DLQ_AUDIT_LENGTH entries.

    Examples:
      uno dead-letter audit --limit 20
      uno dead-letter audit --request 9f86d081884c7d65
      uno dead-letter audit -o jsonl | jq 'select(.verb == "discard" and .phase == "outcome")'
    """
    chosen = format_of(output, many=True)
    if limit is None:
        limit = ROWS_OF_A_TABLE if chosen == "table" else 0
    async with aclosing(queue.audited()) as told:
        found = _of_request(told, request)
        if chosen == "table":
            await _print_table(_calls(found), limit)
            return
        with Records(chosen) as records:
            count = 0
            async for entry in found:
                records.write(record_of(entry))
                count += 1
                if count == limit:
                    return


async def _of_request(told: "AsyncIterator[AuditEntry]", request: str | None) -> "AsyncIterator[AuditEntry]":
    async for entry in told:
        if request is None or entry.request_id == request:
            yield entry


async def _calls(told: "AsyncIterator[AuditEntry]") -> "AsyncIterator[AuditEntry]":
    """Yield one entry for each call: its outcome, which comes first, or its intent where there is none."""
    ended: set[str] = set()
    async for entry in told:
        if entry.phase != "intent":
            ended.add(entry.call)
        elif entry.call in ended:
            ended.discard(entry.call)
            continue
        yield entry


# --- for programs ----------------------------------------------------------------------------------------


def record_of(entry: "AuditEntry") -> dict[str, Any]:
    """Return all of an entry; `which` as an object, or as the text that it is in a stranger's."""
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(entry)
    return {"id": told.pop("id"), "at": when(entry.at_ms)} | told | {"which": _which(entry) or entry.which}


def _which(entry: "AuditEntry") -> dict[str, Any]:
    try:
        told = json.loads(entry.which)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


# --- for people ------------------------------------------------------------------------------------------


async def _print_table(found: "AsyncIterator[AuditEntry]", limit: int) -> None:
    shown = console()
    rows = table("when", "who", "verb", "letters", "outcome", *(("why", "request") if shown.width >= WIDE else ()))
    more = False
    async for entry in found:
        if limit and rows.row_count == limit:
            more = True
            break
        cells = [_moment(entry.at_ms), entry.who, entry.verb, _letters(entry), _outcome(entry)]
        cells += [entry.why, entry.request_id] if shown.width >= WIDE else []
        rows.add_row(*(one_line(cell, LONGEST_CELL) for cell in cells))
    if rows.row_count:
        fit(rows, shown.width, "who", "letters", "outcome", "why", "request")
        shown.print(rows)
    note(f"{rows.row_count} shown" + (", and there are older ones (--limit 0: all)" if more else ""))


def _moment(ms: int) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a stranger's entry may have any id
        return "–"


def _letters(entry: "AuditEntry") -> str:
    """Return in short which letters are meant."""
    which = _which(entry)
    left_out = which.get("left_out", 0)
    match which:
        case {"ids": list(ids)}:
            others = len(ids) - IDS_SHOWN + left_out
            return ", ".join(map(str, ids[:IDS_SHOWN])) + (f" and {others} more" if others > 0 else "")
        case {"where": dict(where)}:
            named = [f"{name} {' or '.join(map(str, values))}" for name, values in where.items()]
            return (", ".join(named) or "every letter") + (f" and {left_out} more" if left_out else "")
        case {"shards": shards}:
            return f"to {shards} shards"
    return entry.which


def _outcome(entry: "AuditEntry") -> str:
    if entry.phase == "intent":
        return NO_OUTCOME
    if "shards" in _which(entry):
        return entry.outcome
    counts = {name: getattr(entry, name) for name in ("done", "changed", "leased", "not_found")}
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "0 done"
    if entry.outcome == "done":
        return told
    return entry.outcome if entry.count == 1 else f"{entry.outcome}: {told}"
