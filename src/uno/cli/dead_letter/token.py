"""`token`: a new token for the service, which is shown once and kept by nobody."""

import sys

import click

from uno.cli.command import Command

ROLES = ("capture", "read", "operate", "admin")

# Repeated here from `service.caller`; a test compares them.


@click.command("token", cls=Command)
@click.argument("name")
@click.option(
    "--role", "roles", multiple=True, required=True, type=click.Choice(ROLES), help="What it allows; may be repeated."
)
@click.option(
    "--days", type=click.FloatRange(0.001, 36_500), metavar="DAYS", help="How long it is good; else for ever."
)
@click.option("--append", metavar="FILE", help="Add its line to this file; a service that runs takes it in by itself.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def token(name: str, roles: tuple[str, ...], days: float | None, append: str | None) -> int:
    """Make a token by which the service knows its bearer, and print it: this once, for nobody keeps it.

    The service's tokens file (DLQ_SERVICE_TOKENS_FILE) has only its hash: the line for it goes to stderr, or into
    the file with --append. A client has the token in DLQ_SERVICE_TOKEN_FILE, or sends it as
    `Authorization: Bearer <token>`.

    Roles: capture sends events in; read looks at letters; operate retries and discards them, and reads; admin may do
    everything. To rotate, append a second token of the same name, hand it out, then remove the first one's line.

    Examples:
      uno dead-letter token billing --role capture
      uno dead-letter token oncall --role operate --days 90 --append tokens > token
    """
    import time

    from uno.event_bus.dead_letter.service.access import line_of, new_token
    from uno.event_bus.dead_letter.service.token_file import append_token

    made = new_token()
    line = line_of(name, frozenset(roles), made, None if days is None else time.time() + days * 86_400)
    if append is not None:
        append_token(append, line)
    else:
        print(f"The line for the service's tokens file:\n{line}\n\nThe token, shown this once:", file=sys.stderr)
    print(made)
    return 0
