"""Servers and clusters of the harness: one of each kind serves row after row, a fresh one those that need it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.faults.rows.registry import Row
from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.servers import Server

__all__ = ["Places"]


class Places:
    """A context manager; ends all that it has started."""

    def __init__(self, server: str = binaries.EMBEDDED) -> None:
        self._name = server
        self._stack = ExitStack()
        self._cluster: Cluster | None = None
        self._server: Server | None = None

    def __enter__(self) -> "Places":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def of(self, row: Row) -> Iterator[Server | Cluster]:
        """An empty place of the row's kind."""
        if row.place is not None:
            with row.place(self._name) as place:
                yield place
        elif row.topology == "cluster":
            if self._cluster is None:
                self._cluster = self._stack.enter_context(Cluster(self._name))
            self._cluster.clean()
            yield self._cluster
        else:
            if self._server is None:
                self._server = self._stack.enter_context(Server(self._name))
            self._server.clean()
            yield self._server
