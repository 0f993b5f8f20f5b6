"""The `uno` command, and groups that import a command only when it is asked for."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn, override

import click

from uno.cli import failures
from uno.cli.command import CONTEXT, PlainHelp

__all__ = ["LazyGroup", "Uno", "uno"]


class LazyGroup(PlainHelp, click.Group):
    """A group whose commands stand in a table, ``name → (module:attribute, summary)``, imported when needed.

    The summary is part of the table so that the group's help imports none of them. No command imports the
    engine at the top of its module: neither does a command's own help.
    """

    def __init__(self, *args: Any, where: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, context_settings=CONTEXT, **options)
        self._where = where

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._where)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None for an unknown name."""
        if cmd_name not in self._where:
            return None
        module, _, attribute = self._where[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's summaries below the options."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._where.items()])


class Uno(LazyGroup):
    """The outermost group: where an exception becomes one line and an exit status."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click would end with words and a status of its own is kept for `main`."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise failures.Ended from error

    def main(  # type: ignore[override]  # click overloads it by standalone_mode; ours always exits
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any
    ) -> NoReturn:
        """Run a command line, and exit: a command returns its status, None means 0."""
        words = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        try:
            status = super().main(words, prog_name, **options)
            sys.stdout.flush()
        except BaseException as error:
            status = failures.report(error, words)
        sys.exit(status if isinstance(status, int) else 0)


@click.group(
    "uno",
    cls=Uno,
    where={"dead-letter": ("uno.cli.dead_letter.group:dead_letter", "Keep failed events, and try them again.")},
    help="A platform for event-driven services.",
)
@click.version_option(package_name="uno-dead-letter")
def uno() -> None:
    """Do nothing by itself."""
