"""Commands whose help is shown as their docstring has it: prose is wrapped, examples are not."""

import inspect
from collections.abc import MutableMapping
from typing import Any, Final, override

import click

__all__ = ["CONTEXT", "Command", "PlainHelp"]

CONTEXT: Final[MutableMapping[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class PlainHelp(click.Command):
    """Writes a paragraph whose second line is indented, such as ``Examples:``, line by line."""

    @override
    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help between usage and options."""
        for paragraph in inspect.cleandoc(self.help or "").split("\n\n"):
            formatter.write_paragraph()
            first, _, rest = paragraph.partition("\n")
            with formatter.indentation():
                if rest.startswith("  "):
                    margin = " " * formatter.current_indent
                    formatter.write("".join(f"{margin}{line}\n" for line in (first, *rest.split("\n"))))
                else:
                    formatter.write_text(paragraph)


class Command(PlainHelp):
    """A command of ours."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, context_settings=CONTEXT, **options)
