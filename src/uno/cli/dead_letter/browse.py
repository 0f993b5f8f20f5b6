"""`list`, `show`, `stats`: looking, without changing anything."""

import sys
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import filter_options, filters_of, output_option
from uno.cli.dead_letter.output import Records, console, format_of, note, span, table, when, write_record
from uno.cli.dead_letter.session import with_queue
from uno.cli.failures import Failure, Status

if TYPE_CHECKING:
    from rich.table import Table

    from uno.event_bus.dead_letter import DeadLetterQueue, Letter, SpoolStats
    from uno.event_bus.dead_letter.books import QueueStats

ROWS_OF_A_TABLE: Final = 100


@click.command("list", cls=Command)
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(0),
    help=f"At most so many letters, 0 for all. Default: {ROWS_OF_A_TABLE} in a table, all in JSON.",
)
@output_option
@with_queue
async def list_(queue: "DeadLetterQueue", /, *, limit: int | None, output: str | None, **filters: Any) -> None:
    """List the open letters, shard by shard, oldest first.

    A filter given twice matches either value; different filters must all match.

    Examples:
      uno dead-letter list --state parked --state held
      uno dead-letter list --type order.created --error-type TimeoutError --limit 20
      uno dead-letter list -o jsonl | jq -r .id
    """
    where, chosen = filters_of(filters), format_of(output, many=True)
    if limit is None:
        limit = ROWS_OF_A_TABLE if chosen == "table" else 0
    async with aclosing(queue.letters(where, whole=False)) as found:
        if chosen == "table":
            await _list_table(queue, found, limit)
            return
        from uno.cli.dead_letter.letters import record_of

        with Records(chosen) as records:
            count = 0
            async for letter in found:
                records.write(record_of(letter, whole=False))
                count += 1
                if count == limit:
                    return


async def _list_table(queue: "DeadLetterQueue", found: Any, limit: int) -> None:
    from uno.cli.dead_letter.letters import letters_table

    letters: list[Letter] = []
    more = False
    async for letter in found:
        if limit and len(letters) == limit:
            more = True
            break
        letters.append(letter)
    stats = await queue.stats()
    if letters:
        shown = console()
        shown.print(letters_table(letters, now_ms=stats.now_ms, width=shown.width))
    shown_letters = f"{len(letters)} shown, and more match" if more else f"{len(letters)} match"
    note(f"{shown_letters}; {stats.open} open in queue {stats.queue}" + (" (--limit 0: all)" if more else ""))


@click.command("show", cls=Command)
@click.argument("letter_id", metavar="ID")
@click.option("--payload", is_flag=True, help="Write the payload's bytes to stdout, and nothing else.")
@output_option
@with_queue
async def show(queue: "DeadLetterQueue", /, *, letter_id: str, payload: bool, output: str | None) -> None:
    """Show all of one letter: its failure, its history, its headers and its payload.

    Examples:
      uno dead-letter show 2-1718000000000-0
      uno dead-letter show 2-1718000000000-0 --payload > event.json
    """
    letter = await queue.get(letter_id)
    chosen = format_of(output)
    if payload:
        _write_bytes(letter.payload)
    elif chosen == "table":
        from uno.cli.dead_letter.letter_page import print_letter

        print_letter(console(), letter, now_ms=(await queue.stats()).now_ms)
    else:
        from uno.cli.dead_letter.letters import record_of

        write_record(record_of(letter, whole=True), chosen)


def _write_bytes(payload: bytes) -> None:
    """Write bytes as they are, but to a terminal only those that it would show and not obey."""
    if sys.stdout.isatty():
        text = payload.decode("utf-8", "replace")
        if not all(c.isprintable() or c in "\n\t" for c in text):
            raise Failure(
                "the payload has control characters, which the terminal would obey: send it to a file with >",
                Status.REFUSED,
            )
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


# --- stats -----------------------------------------------------------------------------------------------


@click.command("stats", cls=Command)
@click.option("--watch", is_flag=True, help="Go on until interrupted.")
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between two looks.")
@output_option
@partial(with_queue, opened=False)
async def stats(queue: "DeadLetterQueue", /, *, watch: bool, every: float, output: str | None) -> None:
    """Count the letters by state, and what has become of all that ever came.

    With DLQ_SPOOL_DIR also those that wait on this machine for Redis, even while that is away (exit status 5).

    Examples:
      uno dead-letter stats
      uno dead-letter stats --watch
      uno dead-letter stats -o json | jq .parked
    """
    from uno.event_bus.dead_letter import StoreUnavailable

    chosen = format_of(output, many=watch)
    try:
        await queue.open(make=False)
        await _show_stats(queue, chosen, watch=watch, every=every)
    except StoreUnavailable:
        _print_spool(queue.config.queue, await queue.spool_stats(), chosen)
        raise


async def _show_stats(queue: "DeadLetterQueue", chosen: Any, *, watch: bool, every: float) -> None:
    if not watch:
        _print_stats(await queue.stats(), chosen)
        return
    import anyio

    if chosen != "table":
        while True:
            _print_stats(await queue.stats(), "jsonl")
            sys.stdout.flush()
            await anyio.sleep(every)
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(stats_table(await queue.stats()), refresh=True)
            await anyio.sleep(every)


def _print_stats(found: "QueueStats", chosen: Any) -> None:
    if chosen == "table":
        console().print(stats_table(found))
        return
    write_record(stats_record(found), chosen)


def _print_spool(queue: str, spool: "SpoolStats | None", chosen: Any) -> None:
    """Print what waits here, where that is all that can be told."""
    if spool is None:
        return
    if chosen != "table":
        write_record({"queue": queue, "spool": spool_record(spool)}, chosen)
        return
    made = table(f"queue {queue}", "now", right=("now",))
    for row in _spool_rows(spool):
        made.add_row(*row)
    console().print(made)


def spool_record(spool: "SpoolStats") -> dict[str, Any]:
    """Return what waits here for programs."""
    return {
        "directory": spool.directory,
        "letters": spool.letters,
        "oldest_at": when(spool.oldest_ms),
        "bytes": spool.bytes,
        "max_bytes": spool.max_bytes,
    }


def _spool_rows(spool: "SpoolStats") -> list[tuple[str, str]]:
    rows = [("spooled here", f"{spool.letters:,}")]
    if spool.oldest_age_s is not None:
        rows.append(("  oldest", span(spool.oldest_age_s)))
    if spool.bytes:
        rows.append(("  of its bytes", f"{spool.bytes / spool.max_bytes:.0%}"))
    return rows


def stats_record(found: "QueueStats") -> dict[str, Any]:
    """Return the counts for programs."""
    return {
        "queue": found.queue,
        "at": when(found.now_ms),
        "shards": found.shards,
        "open": found.open,
        "waiting": found.waiting,
        "leased": found.leased,
        "scheduled": found.scheduled,
        "suspects": found.suspects,
        "held": found.held,
        "parked": found.parked,
        "error_groups": found.error_groups,
        "consumers": found.consumers,
        "oldest_at": when(found.oldest_ms),
        "next_due_at": when(found.next_due_ms),
        "totals": found.totals,
        "spool": None if found.spool is None else spool_record(found.spool),
    }


def stats_table(found: "QueueStats") -> "Table":
    """Return the counts for people: what there is on the left, what has happened on the right."""
    now = {
        "open": found.open,
        "  waiting": found.waiting,
        "  leased": found.leased,
        "  scheduled": found.scheduled,
        "  suspects": found.suspects,
        "  held": found.held,
        "  parked": found.parked,
        "error groups": found.error_groups,
        "consumers": found.consumers,
    }
    left = [(name, f"{count:,}") for name, count in now.items()]
    if found.oldest_ms is not None:
        left.append(("oldest", span((found.now_ms - found.oldest_ms) / 1000)))
    if found.next_due_ms is not None:
        due_s = (found.next_due_ms - found.now_ms) / 1000
        left.append(("next due", f"in {span(due_s)}" if due_s > 0 else "now"))
    if found.spool is not None:
        left += _spool_rows(found.spool)
    right = [(name.replace("_", " "), f"{count:,}") for name, count in found.totals.items()]
    made = table(f"queue {found.queue}", "now", "since it was made", "total", right=("now", "total"))
    for row in range(max(len(left), len(right))):
        made.add_row(*(left[row] if row < len(left) else ("", "")), *(right[row] if row < len(right) else ("", "")))
    return made
