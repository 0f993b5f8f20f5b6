"""What is asked of the operator: which letters, and whether that is meant."""

import sys

import click

from uno.cli.failures import Failure, Status

__all__ = ["ask", "ids_of"]


def ask(question: str, *, yes: bool, name: str = "") -> None:
    """Return if the operator agrees; raise `Failure` if not, or if there is nobody to ask.

    With a name, agreeing takes typing it.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"{question} There is no terminal to ask on: say --yes, or look with --dry-run", Status.USAGE)
    if name:
        typed = click.prompt(f"{question} Type {name!r} to go on", default="", show_default=False, err=True)
        agreed = typed.strip() == name
    else:
        agreed = click.confirm(question, err=True)
    if not agreed:
        raise Failure("nothing was changed", Status.REFUSED, "declined")


def ids_of(words: tuple[str, ...]) -> list[str]:
    """Return the ids of the command line, each once; ``-`` stands for those on stdin, one a line."""
    found: dict[str, None] = {}
    for word in words:
        names = (line.strip() for line in sys.stdin) if word == "-" else (word,)
        found.update((name, None) for name in names if name)
    return list(found)
