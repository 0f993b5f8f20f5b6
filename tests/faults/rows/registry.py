"""All rows, and their order."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from tests.support.clusters import Cluster
from tests.support.harness.run import Run
from tests.support.servers import Server

__all__ = ["ROWS", "Row", "Skip", "in_order", "need", "row"]

type Topology = Literal["cluster", "standalone"]
type Place = Callable[[str], AbstractContextManager[Server | Cluster]]
"""Makes a place for one row, of the server of this name."""


class Skip(Exception):
    """Raised by a row that this machine cannot run; says what is missing."""


class Row(NamedTuple):
    """One scenario."""

    name: str
    what: str
    topology: Topology
    run: Callable[[Run], Any]
    place: Place | None
    """Of a row that needs one of its own; None: it shares the harness's."""


ROWS: dict[str, Row] = {}


def in_order() -> list[Row]:
    """All rows as the table has them: by number, then pairs, then those that are no row of the matrix."""

    def place(row: Row) -> tuple[bool, bool, list[int], str]:
        numbers = [int(number) for number in re.findall(r"F(\d+)", row.name)]
        return not numbers, len(numbers) > 1, numbers, row.name

    return sorted(ROWS.values(), key=place)


def row(
    name: str, what: str, topology: Topology, *, place: Place | None = None
) -> Callable[[Callable[[Run], Any]], Callable[[Run], Any]]:
    """Register the decorated function as the row of this name."""

    def register(run: Callable[[Run], Any]) -> Callable[[Run], Any]:
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, topology, run, place)
        return run

    return register


def need(*, root: bool = False, programs: tuple[str, ...] = ()) -> None:
    """Raise `Skip` when the machine does not let the row do what it does."""
    if root and os.geteuid() != 0:
        raise Skip("needs root")
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Skip(f"needs {', '.join(missing)}")
