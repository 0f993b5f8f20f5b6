"""`workers` and `reshard`: who serves what, and more shards for a queue that lives."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from uno.cli.command import Command
from uno.cli.dead_letter.options import output_option
from uno.cli.dead_letter.output import console, fit, format_of, note, table, write_record
from uno.cli.dead_letter.session import with_queue
from uno.cli.text import one_line

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue
    from uno.event_bus.dead_letter.store.registry import WorkerInfo


@click.command("workers", cls=Command)
@output_option
@with_queue
async def workers(queue: "DeadLetterQueue", /, *, output: str | None) -> int:
    """List the workers that live, and the shards that each of them serves.

    Every shard has a worker, or is named below the table. Workers share the shards among them anew when one comes or
    goes, within two thirds of a lease.

    Examples:
      uno dead-letter workers
      uno dead-letter workers -o json | jq '.unserved'
    """
    import msgspec

    found, shards = await queue.workers(), (await queue.stats()).shards
    unserved = sorted(set(range(shards)) - {shard for worker in found for shard in worker.shards})
    chosen = format_of(output)
    if chosen != "table":
        rows = [msgspec.to_builtins(worker) for worker in found]
        write_record({"workers": rows, "shards": shards, "unserved": unserved}, chosen)
        return 0
    if found:
        _print_workers(found)
    if unserved:
        note(f"no worker serves {len(unserved)} of {shards} shards: {' '.join(map(str, unserved))}")
    return 0


def _print_workers(found: "list[WorkerInfo]") -> None:
    rows = table("worker", "since", "concurrency", "held", "shards")
    for worker in found:
        since = datetime.fromtimestamp(worker.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        served = " ".join(map(str, worker.shards)) or "none"
        rows.add_row(one_line(worker.worker), since, str(worker.concurrency), str(worker.held), served)
    shown = console()
    fit(rows, shown.width, "shards")
    shown.print(rows)


@click.command("reshard", cls=Command)
@click.argument("shards", type=int)
@with_queue
async def reshard(queue: "DeadLetterQueue", /, *, shards: int) -> int:
    """Give a live queue more shards: a power of two above the present count.

    Producers and workers go on meanwhile, and follow by themselves; no letter is moved, nothing is renamed, and a
    deployment whose DLQ_SHARDS is still the earlier count starts as before. Safe to repeat, which also ends a growth
    whose first try was cut off.

    Examples:
      uno dead-letter reshard 16
    """
    print(f"queue {queue.config.queue} has {await queue.reshard(shards)} shards")
    return 0
