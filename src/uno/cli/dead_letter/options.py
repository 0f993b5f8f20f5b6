"""Options that several commands share."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

__all__ = [
    "STATES",
    "app_option",
    "filter_options",
    "filters_of",
    "output_option",
    "queue_options",
    "redis_options",
    "sure_options",
    "together",
]

type Command = Callable[..., Any]

STATES: Final = ("waiting", "leased", "scheduled", "suspect", "held", "parked")
REASONS: Final = ("handler_failed", "timeout", "invalid_event", "unhandled", "stalled", "unknown")

# Repeated here from `letter.py`, which costs `--help` the import of msgspec; a test compares them.


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return several options as one decorator."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_named = together(
    click.option("--queue", metavar="NAME", help="Name of the queue; else DLQ_QUEUE, else 'default'."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)

queue_options = together(
    click.option(
        "--redis-url",
        metavar="URL",
        help="Where the letters live; else DLQ_SERVICE_URL, a service in front of them, else DLQ_REDIS_URL, REDIS_URL.",
    ),
    _named,
)

# Of commands that need Redis itself.
redis_options = together(
    click.option("--redis-url", metavar="URL", help="Where the letters live; else DLQ_REDIS_URL, else REDIS_URL."),
    _named,
)

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "jsonl"]),
    help="Default: a table on a terminal, JSON anywhere else.",
)

app_option = click.option(
    "--app",
    metavar="MODULE:QUEUE",
    help="Where the handlers are; else DLQ_APP, else the one entry point of group uno.dead_letter.",
)

filter_options = together(
    click.option("--state", multiple=True, type=click.Choice(STATES), help="Letters in this state."),
    click.option("--type", "type_", multiple=True, metavar="TYPE", help="Events of this type."),
    click.option("--subscription", multiple=True, metavar="ID", help="Failures of this subscription."),
    click.option("--reason", multiple=True, type=click.Choice(REASONS), help="Why the event was captured."),
    click.option("--error-type", multiple=True, metavar="CLASS", help="Class of the error, as a table shows it."),
    click.option("--fingerprint", multiple=True, metavar="TEXT", help="Failures with the same cause."),
    click.option("--event-id", multiple=True, metavar="ID", help="Events with this id of their own."),
)

sure_options = together(
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--dry-run", "-n", is_flag=True, help="Only say what would be done."),
)


def filters_of(options: dict[str, Any]) -> dict[str, Sequence[str]]:
    """Take the filters out of a command's options, and return those given, as `Where` takes them."""
    names = ("state", "type_", "subscription", "reason", "error_type", "fingerprint", "event_id")
    given = {name.rstrip("_"): options.pop(name) for name in names}
    return {name: values for name, values in given.items() if values}
