"""The deployment guide, as it was handed over: a copy, and no .md, in which formatters would mend code."""

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["COPY", "LINES", "Line", "block", "lines_to_map"]

COPY = Path(__file__).with_name("deployment-guide.txt")
LINES = COPY.read_text("utf-8").splitlines()

_FENCE = re.compile(r" *```\w*$")


class Line(NamedTuple):
    """A line that says something."""

    number: int
    heading: str
    """The one that it stands under, with its ``#``."""
    text: str


def lines_to_map() -> list[Line]:
    """Return the lines between the table of contents and the end, without headings, fences and empty ones."""
    found, heading = [], ""
    is_in_block = False
    for number, text in enumerate(LINES, 1):
        if _FENCE.match(text):
            is_in_block = not is_in_block
        elif text.startswith("#") and not is_in_block:
            heading = text
        elif text.strip() and heading not in ("", LINES[0], "## Table of Contents"):
            found.append(Line(number, heading, text))
    return found


def block(words: str) -> str:
    """Return the fenced block in which these words stand, without its indentation."""
    for found in re.finditer(r"^( *)```\w*\n(.*?)^ *```$", COPY.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        indent, text = found.groups()
        if words in text:
            return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
    raise LookupError(f"no block of the guide has {words!r}")
