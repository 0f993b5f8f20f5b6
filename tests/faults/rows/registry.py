"""All rows, in the order of the table."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from tests.support.clusters import Cluster
from tests.support.harness.run import Run
from tests.support.servers import Server

__all__ = ["ROWS", "Row", "Skip", "need", "row"]

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
