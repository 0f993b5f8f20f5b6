"""`replay`: running letters here and now."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from uno.cli.command import Command
from uno.cli.dead_letter.asking import ask
from uno.cli.dead_letter.options import (
    app_option,
    filter_options,
    filters_of,
    output_option,
    redis_options,
    sure_options,
)
from uno.cli.dead_letter.output import format_of, progress, write_record
from uno.cli.dead_letter.session import closing, run_async
from uno.cli.failures import Status

if TYPE_CHECKING:
    from uno.event_bus.dead_letter import DeadLetterQueue
    from uno.event_bus.dead_letter.replay import ReplayReport


@click.command("replay", cls=Command)
@app_option
@filter_options
@click.option("--batch-size", default=100, show_default=True, type=click.IntRange(1), help="Letters in one round trip.")
@click.option("--max-concurrent", default=10, show_default=True, type=click.IntRange(1), help="Handlers at a time.")
@sure_options
@output_option
@redis_options
def replay(
    app: str | None,
    redis_url: str | None,
    queue: str | None,
    *,
    batch_size: int,
    max_concurrent: int,
    **options: Any,
) -> int:
    """Run letters now, in this process, with the handlers of an application.

    Takes every waiting and scheduled letter, due or not; parked ones only with --state parked. What fails
    again is retried or parked as a worker would. Exit status 1 when some failed.

    Examples:
      uno dead-letter replay --app shop.events:queue --dry-run
      uno dead-letter replay --app shop.events:queue --state parked --type order.created --yes
    """
    from uno.cli.dead_letter.app import load_queue

    loaded = load_queue(app, redis_url=redis_url, queue=queue)
    where, output = filters_of(options), options["output"]
    settings = {"where": where or None, "batch_size": batch_size, "max_concurrent": max_concurrent}
    matched = None
    if options["dry_run"] or not options["yes"]:
        preview = run_async(partial(_replay, loaded, settings, dry_run=True))
        if options["dry_run"]:
            return _print_report(preview, output)
        matched = preview.matched
        if matched:
            ask(f"Replay {matched} letters of queue {loaded.config.queue} here and now?", yes=False)
    report = run_async(partial(_replay, loaded, settings, dry_run=False, matched=matched))
    return _print_report(report, output)


async def _replay(
    queue: "DeadLetterQueue", settings: dict[str, Any], *, dry_run: bool, matched: int | None = None
) -> "ReplayReport":
    """Replay, or only count, with a bar."""
    async with closing(queue):
        with progress("count" if dry_run else "replay", matched) as bar:

            def follow(report: "ReplayReport") -> None:
                bar.to(report.matched if dry_run else report.success + report.failed + report.skipped)

            return await queue.replay_events(dry_run=dry_run, on_progress=follow, **settings)


def _print_report(report: "ReplayReport", output: str | None) -> int:
    """Print what a replay did; return the exit status."""
    chosen = format_of(output)
    if chosen != "table":
        names = ("matched",) if report.dry_run else ("matched", "success", "failed", "skipped")
        write_record({"dry_run": report.dry_run} | {name: getattr(report, name) for name in names}, chosen)
    elif report.dry_run:
        print(f"{report.matched} letters match; nothing was changed")
    else:
        skipped = f", {report.skipped} skipped" if report.skipped else ""
        print(f"{report.success} succeeded, {report.failed} failed{skipped}")
    return int(Status.FAILURE if report.failed else Status.OK)
