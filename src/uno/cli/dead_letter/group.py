"""`uno dead-letter`: the table of its commands."""

import click

from uno.cli.group import LazyGroup

__all__ = ["dead_letter"]

_HERE = "uno.cli.dead_letter"

COMMANDS = {
    "worker": (f"{_HERE}.run:worker", "Try letters again, with an application's handlers."),
    "service": (f"{_HERE}.serve:service", "Serve the queue over HTTP."),
    "token": (f"{_HERE}.token:token", "Make a token for the service."),
    "demo": (f"{_HERE}.run:demo", "Show the main job on events that fail."),
    "list": (f"{_HERE}.browse:list_", "List open letters."),
    "show": (f"{_HERE}.browse:show", "Show all of one letter."),
    "stats": (f"{_HERE}.browse:stats", "Count letters by state, and what became of them."),
    "retry": (f"{_HERE}.act:retry", "Send letters back to the workers now."),
    "replay": (f"{_HERE}.replay:replay", "Run letters now, in this process."),
    "discard": (f"{_HERE}.act:discard", "Remove letters for good, by id."),
    "clear": (f"{_HERE}.act:clear", "Remove all letters that match."),
    "import": (f"{_HERE}.keep:import_", "Capture events from a file of JSON lines."),
    "audit": (f"{_HERE}.audit:audit", "Show what operators have done, and who."),
    "workers": (f"{_HERE}.shards:workers", "List the workers, and the shards that they serve."),
    "reshard": (f"{_HERE}.shards:reshard", "Give a live queue more shards."),
    "verify": (f"{_HERE}.check:verify", "Check that every letter is accounted for."),
    "health": (f"{_HERE}.check:health", "Check that the queue is fit to work."),
    "bench": (f"{_HERE}.bench:bench", "Measure captures, work and a failover on any server."),
}


@click.group("dead-letter", cls=LazyGroup, where=COMMANDS)
def dead_letter() -> None:
    """Keep failed events, try them again, and look after those that nothing could cure.

    Commands find the queue by --redis-url, else a service in front of it by DLQ_SERVICE_URL, else DLQ_REDIS_URL, else
    REDIS_URL; every other setting is a DLQ_… variable. What they print on a terminal is for people; anywhere else it
    is JSON (choose with -o).

    Exit status:
      0 ok                       3 no such letter, or queue
      1 failure                  4 refused, or in conflict
      2 usage or settings        5 Redis, or the service, cannot be reached

    Examples:
      uno dead-letter worker --app shop.events:queue
      uno dead-letter list --state parked
      uno dead-letter retry 2-1718000000000-0
    """
