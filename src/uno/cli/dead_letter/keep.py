"""`import`: events from a file into the queue."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option
from uno.cli.dead_letter.output import Bar, format_of, note, progress, write_record
from uno.cli.dead_letter.session import with_queue
from uno.cli.failures import Failure, Status

if TYPE_CHECKING:
    from uno.cli.dead_letter.ndjson import BadLine, Event, Source
    from uno.event_bus.dead_letter import DeadLetterQueue

BATCH: Final = 100
"""Events of one `add_many`; at `DLQ_MAX_PAYLOAD_BYTES` each, that is 100 MB at the default."""

BAD_LINES_SHOWN: Final = 20


@click.command("import", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--delay",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Until the first try; else as for any new letter.",
)
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@output_option
@partial(with_queue, make=True)
async def import_(
    queue: "DeadLetterQueue", /, *, file: Path, delay: float | None, strict: bool, output: str | None
) -> int:
    """Capture events from a file: one JSON object a line, also gzipped; - reads stdin.

    Fields: type and payload, optional event_id and subscription; others are passed over. The payload's bytes
    are kept as they stand in the file. Lines with an event_id may be imported again within DLQ_DEDUPE_WINDOW
    without being captured twice. A bad line is named on stderr and passed over; the exit status is then 1.

    Examples:
      uno dead-letter import webhooks.ndjson.gz
      echo '{"type":"ping","payload":{"n":1},"event_id":"p1"}' | uno dead-letter import - --delay 0
    """
    from uno.cli.dead_letter.ndjson import Source

    job = Import(queue, delay, strict=strict)
    try:
        with (
            Source(file) as source,
            progress("import", source.size, unit="bytes" if source.size else "events") as bar,
        ):
            await job.run(source, bar)
    finally:
        job.tell(output)
    return int(Status.FAILURE if job.bad else Status.OK)


@dataclass
class Import:
    """One run over a file: what was read, and what became of it."""

    queue: "DeadLetterQueue"
    delay: float | None
    strict: bool
    read: int = 0
    captured: int = 0
    repeated: int = 0
    """Captured before, by this run or an earlier one: their ids are not new."""
    bad: int = 0
    _newest: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Shard → stream id of the newest letter that is known there."""

    async def run(self, source: "Source", bar: Bar) -> None:
        """Capture every event of the source, batch by batch."""
        from anyio import to_thread

        stats = await self.queue.stats()
        self._newest = {str(shard): (int(row["now"]), -1) for shard, row in enumerate(stats.by_shard)}
        items = source.events(self.queue.config.max_payload_bytes)
        # In a thread, because stdin may be silent for long: an interrupt must not wait for its next line.
        while batch := await to_thread.run_sync(_next, items, abandon_on_cancel=True):
            self.read += len(batch)
            await self._take(batch)
            bar.to(source.position if source.size else self.read)

    async def _take(self, batch: "list[Event | BadLine]") -> None:
        events: list[Event] = []
        for item in batch:
            if not isinstance(item, tuple):
                events.append(item)
                continue
            self._note_bad(item.line, item.why)
            if self.strict:
                await self._capture(events)
                raise Failure(f"stopped at line {item.line}: {item.why}", Status.FAILURE, "bad_line")
        await self._capture(events)

    def _note_bad(self, line: int, why: str) -> None:
        self.bad += 1
        if not self.strict and self.bad <= BAD_LINES_SHOWN:
            note(f"line {line}: {why}")

    async def _capture(self, events: "list[Event]") -> None:
        """Capture events, with one `add_many` for each subscription among them."""
        by_subscription: dict[str | None, list[Event]] = {}
        for event in events:
            by_subscription.setdefault(event.subscription or None, []).append(event)
        for subscription, together in by_subscription.items():
            await self._add(subscription, together)

    async def _add(self, subscription: str | None, events: "list[Event]") -> None:
        from uno.event_bus.dead_letter.codec import JSON, Encoded
        from uno.event_bus.dead_letter.errors import (
            DeadLetterError,
            InvalidEvent,
            PartialCapture,
            PayloadTooLarge,
        )

        ids: list[str] = []
        refused: dict[int, DeadLetterError] = {}
        try:
            ids = await self.queue.add_many(
                [Encoded(event.type, JSON, bytes(event.payload)) for event in events],
                event_ids=[event.event_id for event in events],
                subscription_id=subscription,
                delay=self.delay,
            )
        except PartialCapture as partial:
            ids, refused = list(partial.ids.values()), partial.errors
        except (InvalidEvent, PayloadTooLarge) as error:
            refused[0] = error  # of a batch of one
        self._count(ids)
        for position, why in refused.items():
            if not isinstance(why, InvalidEvent | PayloadTooLarge):
                raise why
            self._note_bad(events[position].line, str(why))

    def _count(self, ids: list[str]) -> None:
        """Tell new letters from repeats: ids of a shard only grow, so a repeat's is not above those known."""
        places = {letter_id: _place(letter_id) for letter_id in ids}
        new = sum(self._newest[shard] < place for shard, place in places.values())
        self.captured += new
        self.repeated += len(ids) - new
        for shard, place in places.values():
            self._newest[shard] = max(self._newest[shard], place)

    def tell(self, output: str | None) -> None:
        """Print what was done so far."""
        if self.bad > BAD_LINES_SHOWN and not self.strict:
            note(f"… and {self.bad - BAD_LINES_SHOWN} more bad lines")
        record = {"read": self.read, "captured": self.captured, "repeated": self.repeated, "bad": self.bad}
        chosen = format_of(output)
        if chosen == "table":
            print(", ".join(f"{count} {what}" for what, count in record.items()))
        else:
            write_record(record, chosen)


def _next(items: "Iterator[Event | BadLine]") -> "list[Event | BadLine]":
    return list(islice(items, BATCH))


def _place(letter_id: str) -> tuple[str, tuple[int, int]]:
    """Return a letter's shard, and its stream id as numbers."""
    shard, ms, number = letter_id.split("-")
    return shard, (int(ms), int(number))
