"""`retry`, `discard`, `clear`: what an operator does to letters."""

from functools import partial
from typing import Any, Final

import click

from uno.cli.command import Command
from uno.cli.dead_letter.asking import ids_of
from uno.cli.dead_letter.bulk import Deed
from uno.cli.dead_letter.options import filter_options, filters_of, output_option, queue_options, sure_options

RETRIED: Final = ("scheduled", "suspect", "held", "parked")
"""States that `retry` takes letters from unless a filter names others: the rest is on its way already."""


@click.command("retry", cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filter_options
@click.option("--all", "all_", is_flag=True, help="Every letter, without a filter.")
@click.option("--delay", default=0.0, type=click.FloatRange(0), metavar="SECONDS", help="Due so much later.")
@sure_options
@output_option
@queue_options
def retry(ids: tuple[str, ...], **options: Any) -> int:
    """Send letters back to the workers now, by id (- reads ids from stdin) or by filter.

    A parked letter gets a new budget of retries. By filter, letters that wait or run already are left alone,
    unless --state names them; one that a worker has is refused.

    Examples:
      uno dead-letter retry 2-1718000000000-0 0-1718000000321-4
      uno dead-letter retry --state parked --error-type TimeoutError --dry-run
      uno dead-letter retry --type order.created --yes
    """
    delay, everything, where = options.pop("delay"), options.pop("all_"), filters_of(options)
    deed = Deed("retry", "retried", lambda queue: partial(queue.retry_many, delay=delay), **options)
    if ids and (where or everything):
        raise click.UsageError("name ids, or filters, but not both", click.get_current_context())
    if ids:
        return deed.on_ids(ids_of(ids))
    if where or everything:
        return deed.on_matching({"state": RETRIED} | where)
    what = "name the letters to retry: ids, a filter such as --state parked, or --all"
    raise click.UsageError(what, click.get_current_context())


@click.command("discard", cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--why", required=True, help="Why they may go, for the audit.")
@sure_options
@output_option
@queue_options
def discard(ids: tuple[str, ...], why: str, **options: Any) -> int:
    """Remove letters for good, by id (- reads ids from stdin); to discard by filter, use clear.

    Examples:
      uno dead-letter discard 2-1718000000000-0 --why "test data"
      uno dead-letter list --type ping -o jsonl | jq -r .id | uno dead-letter discard - --why ping --yes
    """
    deed = Deed("discard", "discarded", lambda queue: partial(queue.discard_many, why=why), **options)
    return deed.on_ids(ids_of(ids), sure=len(ids) == 1)


@click.command("clear", cls=Command)
@filter_options
@click.option("--why", default="cleared", show_default=True, help="Why they may go, for the audit.")
@sure_options
@output_option
@queue_options
def clear(why: str, **options: Any) -> int:
    """Discard every letter that matches; without a filter, every letter of the queue.

    There is no way back. On a terminal it asks for the queue's name; anywhere else it needs --yes.

    Examples:
      uno dead-letter clear --dry-run
      uno dead-letter clear --state parked --reason unhandled --why "handler was removed" --yes
    """
    where = filters_of(options)
    deed = Deed("clear", "discarded", lambda queue: partial(queue.discard_many, why=why), **options)
    return deed.on_matching(where, by_name=True)
