"""What the demo says, as lines of text: a note of the journal, the state of the queue, the ledger."""

from collections.abc import Iterator, Sequence
from typing import Final

from uno.event_bus.dead_letter.books import QueueStats
from uno.event_bus.dead_letter.demo.journal import Key, Note
from uno.event_bus.dead_letter.demo.ledger import Count, Ledger
from uno.event_bus.dead_letter.demo.shop import CONSUMER

__all__ = ["ledger_lines", "note_line", "stats_line", "word_of"]

MOST_KINDS: Final = 12
"""Rows of the ledger's table; the rarest kinds are summed up in one."""

LISTED: Final = 5
"""Letters that are named when something is wrong with them."""

LONGEST_LABEL: Final = 32
"""Characters of the table's first column, so that the table fits into 80."""


def word_of(note: Note) -> str:
    """Return how a step ended, in a word. A handler that worked has not settled yet: that is up to its worker."""
    return note.outcome.value if note.attempt else "captured"


def note_line(note: Note, elapsed_s: float) -> str:
    """Return one step in the life of a letter: when, which, which attempt, what comes next, and why."""
    who = note.event_id if note.subscription == CONSUMER else f"{note.event_id} {note.subscription:<13}"
    attempt = f"attempt {note.attempt}" if note.attempt else "published"
    return f"{elapsed_s:4.1f} s  {who}  {attempt}  {word_of(note):<9}  {note.why}".rstrip()


def stats_line(stats: QueueStats, elapsed_s: float) -> str:
    """Return the queue's books at one moment."""
    totals = stats.totals
    return (
        f"{elapsed_s:4.1f} s  captured {totals['captured']:,}  retried {totals['retried']:,}  "
        f"resolved {totals['resolved']:,}  parked {stats.parked:,}  discarded {totals['discarded']:,}  "
        f"open {stats.open - stats.parked:,}"
    )


def ledger_lines(ledger: Ledger, *, elapsed_s: float) -> Iterator[str]:
    """Yield the ledger; the last line tells it all."""
    yield from _table(ledger)
    yield ""
    attempts = ", ".join(f"{number}: {count:,}" for number, count in ledger.attempts.items())
    yield f"resolved by attempt {attempts}" if attempts else "nothing was resolved"
    workers = ", ".join(f"{name} {runs:,}" for name, runs in ledger.by_worker.items())
    yield f"attempts by worker: {workers or 'none'}; {ledger.retried:,} ended in a retry"
    if ledger.crashed:
        yield f"leases that ran out: {ledger.crashed:,}; their letters came back and ran alone"
    if ledger.twice:
        yield f"handlers that worked twice, as their worker died before it could settle: {ledger.twice:,}"
    if ledger.neighbours:
        yield f"subscriptions that worked at once: {ledger.neighbours:,}; they were left alone"
    yield _bytes_line(ledger)
    yield from _faults(ledger)
    yield f"took {elapsed_s:.1f} s"
    yield ledger.last_line


def _bytes_line(ledger: Ledger) -> str:
    letters = ledger.journal_total.captured
    if ledger.altered:
        return f"payloads: {len(ledger.altered):,} of {letters:,} came back with other bytes"
    return f"payloads: {letters:,}, {ledger.bytes_sent:,} bytes; every attempt got the same to the byte"


def _faults(ledger: Ledger) -> Iterator[str]:
    yield from _named("other bytes than published", ledger.altered)
    yield from _named("no end, or two, by the handlers' journal", ledger.astray)
    if ledger.lost_externally:
        yield f"deleted from Redis behind the queue's back: {ledger.lost_externally:,}"
    if ledger.orphaned:
        yield f"orphaned and found again: {ledger.orphaned:,}"
    for violation in ledger.violations[:LISTED]:
        yield f"verify: {violation}"


def _named(fault: str, keys: Sequence[Key]) -> Iterator[str]:
    if keys:
        names = ", ".join(f"{event} ({subscription})" for event, subscription in keys[:LISTED])
        more = f" and {len(keys) - LISTED:,} more" if len(keys) > LISTED else ""
        yield f"{fault}: {names}{more}"


# --- the table -------------------------------------------------------------------------------------------

_HEADS: Final = ("captured", "resolved", "parked", "discarded", "missing")


def _table(ledger: Ledger) -> Iterator[str]:
    rows = [(_label(*kind), count) for kind, count in ledger.by_kind.items()]
    if len(rows) > MOST_KINDS:
        rows.sort(key=lambda row: -row[1].captured)
        rest = [count for _, count in rows[MOST_KINDS - 1 :]]
        rows = [*rows[: MOST_KINDS - 1], (f"{len(rest)} more types", _sum(rest))]
    widths = [max([5, *(len(label) for label, _ in rows)]), *(max(8, len(head)) for head in _HEADS)]
    yield _row(widths, "", *_HEADS)
    for label, count in rows:
        yield _row(widths, label, *_cells(count))
    yield _row(widths, "total", *_cells(ledger.books))


def _label(type_: str, subscription: str) -> str:
    label = type_ if subscription == CONSUMER else f"{type_} → {subscription}"
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _sum(counts: Sequence[Count]) -> Count:
    return Count(
        sum(count.captured for count in counts),
        sum(count.resolved for count in counts),
        sum(count.parked for count in counts),
        sum(count.discarded for count in counts),
    )


def _cells(count: Count) -> list[str]:
    numbers = (count.captured, count.resolved, count.parked, count.discarded, count.unaccounted)
    return [f"{number:,}" for number in numbers]


def _row(widths: list[int], label: str, *cells: str) -> str:
    return f"{label:<{widths[0]}}" + "".join(
        f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)
    )
