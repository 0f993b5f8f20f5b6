"""Real clusters for tests: three primaries with a replica each, ended with the test process.

Fixtures, for a `conftest.py` to import: `cluster` is whole and empty, and kept for the next test; a test may kill,
stop and start its nodes. One that adds nodes or moves slots makes a `Cluster` of its own.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import binaries
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster


class Cluster(LocalCluster):
    """A cluster of one server; `name` is one of `binaries.SERVERS`, the rest is for `LocalCluster`."""

    def __init__(self, name: str = binaries.EMBEDDED, **options: Any) -> None:
        super().__init__(binaries.binary(name), **options)  # fails or skips the test before anything is made
        self.name = name
        self.version = tuple(map(int, name.partition("-")[2].split(".")))

    def connections(self) -> list[dict[str, str]]:
        """What the nodes say of each connection; ids are a cluster's own."""
        rows: list[dict[str, str]] = []
        for node in self.nodes:
            if node.is_running and not node.is_paused:
                rows += [row | {"id": f"{node.port}-{row['id']}"} for row in node.client.client_list()]
        return rows

    def log(self) -> str:
        """What the nodes have said, one after the other."""
        assert self._folder is not None
        return "\n".join(f"== {path}\n{path.read_text('utf-8', 'replace')}" for path in self._folder.glob("*/*.log"))

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.primaries():
            node.client.flushall()

    def mend(self) -> None:
        """Bring every node back, and wait until each has found its place."""
        for node in self.nodes:
            if node.is_paused:
                node.send(signal.SIGCONT)
            node.start()
        self.wait_until_ok()

    def clean(self) -> None:
        """Make it as new, but for who is whose replica: every node there, no keys, the settings that tests change."""
        self.mend()
        for node in self.nodes:
            pipe = node.client.pipeline(transaction=False)
            for setting in ("maxmemory 0", "maxmemory-policy noeviction"):
                pipe.execute_command("CONFIG", "SET", *setting.split())
            pipe.execute_command("CLIENT", "UNPAUSE")
            pipe.execute()
        self.flush()


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Callable[[str], Cluster]]:
    """Clusters of this test process by server: each is started when it is first asked for, and lives to the end."""
    clusters: dict[str, Cluster] = {}
    with ExitStack() as stack:

        def running(name: str) -> Cluster:
            if name not in clusters:
                clusters[name] = stack.enter_context(Cluster(name))
            return clusters[name]

        yield running


@pytest.fixture(params=binaries.chosen())
def cluster(request: pytest.FixtureRequest, running_cluster: Callable[[str], Cluster]) -> Cluster:
    """A whole, empty cluster; the test runs once on each server that `DLQ_TEST_SERVERS` asks for."""
    found = running_cluster(request.param)
    found.clean()
    return found
