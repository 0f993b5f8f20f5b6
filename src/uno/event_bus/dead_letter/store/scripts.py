"""The Lua scripts: read once, includes resolved, hashed once.

The folder `lua/` of a checkout is used when the package runs from it; an installed package brings its own copy
(an editable install would leave a stale one).
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["PROTOCOL", "Script", "lua_folder", "script"]

PROTOCOL: Final = 1
"""Version of what callers and scripts say to each other; a shard may refuse an earlier one (`UPGRADE`)."""

_INCLUDE: Final = re.compile(r"^-- include (\S+)$")


@dataclass(frozen=True, slots=True)
class Script:
    """One verb of the state machine, ready to be sent."""

    name: str
    keys: tuple[str, ...]
    """Names of the keys it is called with, in order, as its header declares them."""
    source: bytes
    sha: str
    plain_source: bytes
    """Without the ``#!lua`` line, which Redis 6.2 does not compile."""
    plain_sha: str


def lua_folder() -> Path:
    """Return the folder of the scripts: the checkout's, or the installed package's."""
    package = Path(__file__).parents[1]
    checkout = package.parents[3] / "lua"
    return checkout if (checkout / "take.lua").is_file() else package / "_lua"


def _expand(path: Path, folder: Path, seen: tuple[Path, ...]) -> list[str]:
    """Return the lines of a file with its includes in their places."""
    lines: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
            continue
        included = folder / match[1]
        where = f"{path.name}:{number}"
        if not included.is_file():
            raise FileNotFoundError(f"{where} includes {match[1]}, which is not in {folder}")
        if included in seen:
            raise ValueError(f"{where} includes {match[1]}, which is being included already")
        lines += _expand(included, folder, (*seen, included))
    return lines


def _keys_of(lines: list[str]) -> tuple[str, ...]:
    """Return the names in the header's KEYS rows."""
    keys: list[str] = []
    for line in lines:
        match = re.match(r"^--(?: KEYS)? +(\d+) (\w+) +(?:stream|hash|zset) +dlq:", line)
        if match:
            keys.append(match[2])
        elif line.startswith("-- ARGV"):
            break
    return tuple(keys)


@cache
def script(name: str) -> Script:
    """Return the script of this verb.

    Raises `FileNotFoundError` or `ValueError` naming file and line when an include is missing or circular.
    """
    folder = lua_folder()
    path = folder / f"{name}.lua"
    lines = _expand(path, folder, (path,))
    source = "\n".join(lines).encode()
    plain = "\n".join(lines[1:] if lines[0].startswith("#!") else lines).encode()
    return Script(
        name,
        _keys_of(lines),
        source,
        hashlib.sha1(source, usedforsecurity=False).hexdigest(),
        plain,
        hashlib.sha1(plain, usedforsecurity=False).hexdigest(),
    )
