"""What pages show of a terminal: blocks are read from the page, run, and compared with what comes out.

A block is fenced as ``console``, and its name stands behind that word. In it ``$ …`` is a command, ``# …`` names
something else that says a text (a log, an error), and the lines below are what it said, shortened: lines may be left
out, and ``…`` stands for anything. Ids, durations, names of workers, white space, and numbers that are neither 0 nor a
status may differ from run to run. In a command the id of a letter stands for that of the first one that there is.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cli import Cli
from tests.support.servers import Server

__all__ = ["SOCKET", "Step", "Terminal", "blocks_of", "missing_from"]

SOCKET = "/run/redis.sock"
"""Where pages say that the server is."""

_WORKER = re.compile(r"[\w.-]+-\d+-[0-9a-f]{8}\b")
_HEX = re.compile(r"\b[0-9a-f]{16,32}\b")
_ID = re.compile(r"\b\d+-\d{13}-\d+\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?|\b[\d.]+ ?(?:s|m|h|ms)\b")
_NUMBER = re.compile(r"(status\W+)?(\d[\d,.]*(?<=\d))")


@dataclass(frozen=True)
class Step:
    """A command, or a source of text, and what the page shows of it."""

    prompt: str
    """``$`` or ``#``."""
    words: str
    shown: list[str] = field(default_factory=list)


def blocks_of(page: Path) -> dict[str, list[Step]]:
    """Return the blocks of a page by their names; a block without one, or two of one name, fail."""
    found = re.findall(r"^```console *(.*)\n((?:(?!```).*\n)*)```$", page.read_text("utf-8"), re.MULTILINE)
    blocks = {name: _steps(text) for name, text in found}
    assert len(blocks) == len(found), f"{page.name}: a name is given twice"
    assert "" not in blocks, f"{page.name}: a block has no name"
    return blocks


def _steps(text: str) -> list[Step]:
    steps: list[Step] = []
    for line in text.splitlines():
        if line.startswith(("$ ", "# ")):
            steps.append(Step(line[0], line[2:]))
        elif line.strip() not in ("", "…"):
            steps[-1].shown.append(line)
    return steps


def missing_from(said: str, shown: list[str], address: str) -> str | None:
    """Return the first line shown that was not said, in this order; None when all were."""
    lines = iter([_plain(line, address) for line in said.splitlines()])
    for wanted in shown:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in _plain(wanted, address).split("…")))
        if not any(pattern.search(line) for line in lines):
            return wanted
    return None


def _plain(line: str, address: str) -> str:
    line = line.replace(address, SOCKET)
    for pattern, word in ((_WORKER, "worker"), (_HEX, "hex"), (_ID, "id"), (_TIME, "time")):
        line = pattern.sub(word, line)
    return " ".join(_NUMBER.sub(lambda found: found[0] if found[1] or found[2] == "0" else "1", line).split())


@dataclass(frozen=True)
class Terminal:
    """Runs the commands of pages: ``uno dead-letter …`` and ``redis-cli …``, against one server."""

    cli: Cli
    server: Server

    def run(self, command: str) -> str:
        """Return what the command writes, tables as wide as pages have them."""
        program, *words = shlex.split(command)
        if program == "redis-cli":
            return "\n".join(_as_redis_cli(self._reply(words)))
        assert program == "uno" and words[0] == "dead-letter", command
        words = [self._first_id() if _ID.fullmatch(word) else word for word in words[1:]]
        if not {"-o", "--output"} & set(words) and words[0] not in ("reshard", "import"):
            words += ["-o", "table"]
        ran = self.cli(*words, COLUMNS="118")
        return ran.out + ran.err + f"exit status {ran.status}\n"

    def _first_id(self) -> str:
        return str(self.cli("list", "--limit", "1").records[0]["id"])

    def _reply(self, words: list[str]) -> Any:
        """Send it as it stands; redis-py would make Python's own types of the reply."""
        pool = self.server.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            pool.release(connection)


def _as_redis_cli(reply: Any, indent: str = "") -> list[str]:
    """Return a reply as redis-cli shows it on a terminal."""
    match reply:
        case bool() | int():
            return [f"(integer) {int(reply)}"]
        case None:
            return ["(nil)"]
        case bytes() if b"\n" in reply:
            return reply.decode("utf-8", "replace").splitlines()
        case bytes():
            return [f'"{reply.decode("utf-8", "replace")}"']
        case dict():  # as the second version of the protocol, which redis-cli speaks, has it
            return _as_redis_cli([part for pair in reply.items() for part in pair], indent)
        case list():
            lines: list[str] = [] if reply else ["(empty array)"]
            for number, item in enumerate(reply, 1):
                head, *rest = _as_redis_cli(item, indent + "   ")
                lines += [f"{indent if lines else ''}{number}) {head}", *rest]
            return lines
    return [str(reply)]
