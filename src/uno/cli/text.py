r"""Text from outside, made fit for a terminal.

What is stored came from other programs. An escape sequence in it could rename a window, hide a line or type
for the reader; a bidirectional mark could swap what is read. Whatever is not printable is shown as Python
writes it (``\x1b``, ``\u202e``).
"""

import re
from typing import Final

__all__ = ["json_safe", "lines", "one_line"]

_SPACES: Final = re.compile(r"\s+")
_RISKY_IN_JSON: Final = re.compile("[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int | None = None) -> str:
    """Return the text as one printable line, of at most `most` characters."""
    line = _printable(_SPACES.sub(" ", text).strip())
    return line if most is None or len(line) <= most else line[: most - 1] + "…"


def lines(text: str) -> str:
    """Return the text with its line ends, and nothing else that a terminal would obey."""
    return "\n".join(_printable(line.expandtabs(4)) for line in text.replace("\r\n", "\n").split("\n"))


def json_safe(text: str) -> str:
    """Return JSON with the same meaning, in which what a terminal may obey is written as an escape.

    JSON itself escapes what lies below U+0020; the other controls can only stand inside its strings.
    """
    return _RISKY_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
