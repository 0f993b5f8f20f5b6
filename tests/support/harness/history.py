"""What every process of a run writes down: append-only lines in a file of its own, so that SIGKILL hides nothing.

A line stands in the file before what it announces is done (``invoke``, ``start``, ``settling``), or at once after a
reply has come (``ok``, ``take``, ``settled``). Times are CLOCK_MONOTONIC, which all processes share.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["History", "Journal", "Line", "shard_of"]


class Line(NamedTuple):
    """One line of a history.

    ``invoke``, ``ok``, ``info`` (outcome unknown), ``fail`` (certainly nothing): a producer and one capture.
    ``start``, ``end`` (note: ok, failed, cancelled): a run of a handler. ``take``, ``settling``, ``settled`` (note:
    verb and verdict): a worker and one letter. ``ready``: its first word. ``fault`` (event: its name; note: begin or
    end; letter: the shards whose last writes it may undo), ``deleted`` (a letter's entry), ``foreign`` (a stranger's
    entry): the run itself.
    """

    what: str
    at: float
    actor: str
    event: str = ""
    letter: str = ""
    token: int = 0
    asked_at: float = 0.0
    note: str = ""


class Journal:
    """The file of one process."""

    def __init__(self, folder: str | Path, actor: str) -> None:
        self._actor = actor
        self._file = os.open(f"{folder}/{actor}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, event: str = "", letter: str = "", token: int = 0, note: str = "") -> None:
        """Write one line, now."""
        self.write_all([self.line(what, event, letter, token, note=note)])

    def line(
        self, what: str, event: str = "", letter: str = "", token: int = 0, asked_at: float = 0.0, note: str = ""
    ) -> Line:
        return Line(what, time.monotonic(), self._actor, event, letter, token, asked_at, note)

    def write_all(self, lines: Iterable[Line]) -> None:
        """Write lines in one call of the system."""
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if text:
            os.write(self._file, text)

    def close(self) -> None:
        os.close(self._file)


class History:
    """The files of a run; `follow` reads what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.lines: list[Line] = []
        """All lines so far, in the order of reading."""

    def follow(self) -> list[Line]:
        """Read the lines that have come since the last call; return them."""
        new: list[Line] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                new += [Line(*json.loads(text)) for text in whole.split(b"\n")]
        self.lines += new
        return new

    def by_time(self) -> list[Line]:
        """Everything, in the order of time."""
        self.follow()
        return sorted(self.lines, key=lambda line: line.at)


def shard_of(letter: str) -> int:
    """The shard that a letter's id names."""
    return int(letter.partition("-")[0])
