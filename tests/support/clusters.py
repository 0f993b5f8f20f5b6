"""Real clusters for tests: three primaries with a replica each, ended with the test process.

The fixture `cluster` (`places.py`) is whole and empty, and kept for the next test, which may kill, stop and start
its nodes. A test that adds nodes makes a `Cluster` of its own.
"""

import signal
from typing import Any, override

from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster

from tests.support import binaries
from tests.support.servers import CONFIGURATION
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster
from uno.event_bus.dead_letter.store.local_node import HOST

SIGNS = ("cluster_state", "cluster_slots_ok", "cluster_known_nodes", "cluster_current_epoch")
"""Of what CLUSTER INFO says, that which tells whether the cluster is as it was."""


class Cluster(LocalCluster):
    """A cluster of one server; `name` is one of `binaries.SERVERS`, the rest is for `LocalCluster`."""

    def __init__(self, name: str = binaries.EMBEDDED, **options: Any) -> None:
        binary = binaries.binary(name)  # fails or skips the test before anything is made
        super().__init__(binary, config_file=CONFIGURATION, **options)
        self.name = name
        self.version = tuple(map(int, name.partition("-")[2].split(".")))
        self._client: RedisCluster | None = None
        self._whole: list[object] = []

    @override
    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        super().stop()

    @property
    def address(self) -> str:
        """Where it is, as errors name it."""
        return f"{HOST}:{self._first().port}"

    @property
    def every_url(self) -> str:
        """A URL that names every node."""
        return f"redis://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}/0?cluster=true"

    def url_of(self, user: str, password: str) -> str:
        """The URL of a user of its own."""
        return self.url.replace("://", f"://{user}:{password}@")

    def users_client(self, **options: Any) -> AsyncRedisCluster:
        """A client as users of the engine build theirs."""
        return AsyncRedisCluster(host=HOST, port=self._first().port, **options)

    @property
    def client(self) -> Any:
        """A blocking client, for a test's own looks and strokes: goes to the node that has the key, answers bytes.

        What is of no key, it would ask one node: see `clients` and `keys`.
        """
        if self._client is None:
            self._client = RedisCluster(host=HOST, port=self._first().port, socket_timeout=10)
        return self._client

    def clients(self) -> list[Any]:
        """A client of each node that runs, replicas among them, for what is of no key."""
        return [node.client for node in self.nodes if node.is_running and not node.is_paused]

    def keys(self, pattern: str = "*") -> list[bytes]:
        """The keys that there are."""
        return [key for node in self.primaries() for key in node.client.keys(pattern)]

    def connections(self) -> list[dict[str, str]]:
        """What the nodes say of each connection; ids are a cluster's own."""
        rows: list[dict[str, str]] = []
        for node in self.nodes:
            if node.is_running and not node.is_paused:
                rows += [row | {"id": f"{node.port}-{row['id']}"} for row in node.client.client_list()]
        return rows

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.nodes:
            if node.is_primary():  # asked now: a client's map may be from before a failover
                node.client.flushall()

    def log(self) -> str:
        """What the nodes have said, one after the other."""
        assert self._folder is not None
        return "\n".join(f"== {path}\n{path.read_text('utf-8', 'replace')}" for path in self._folder.glob("*/*.log"))

    def mend(self) -> None:
        """Bring every node back, and wait until each has found its place."""
        for node in self.nodes:
            if node.is_paused:
                node.send(signal.SIGCONT)
            node.start()
        self.wait_until_ok()
        self._whole = self._signs()

    def _signs(self) -> list[object]:
        """What would be different if a node had died, been away, or got other slots since."""
        signs: list[object] = []
        for node in self.nodes:
            if not node.is_running or node.is_paused:
                return []
            said = node.client.execute_command("CLUSTER INFO")
            signs.append((node.pid, *(said[name] for name in SIGNS)))
        return signs

    def clean(self) -> None:
        """Make it as new, but for who is whose replica: every node there, no keys, the settings that tests change."""
        if not self._whole or self._signs() != self._whole:
            self.mend()
        for node in self.nodes:
            pipe = node.client.pipeline(transaction=False)
            for setting in ("maxmemory 0", "maxmemory-policy noeviction"):
                pipe.execute_command("CONFIG", "SET", *setting.split())
            pipe.execute_command("CLIENT", "UNPAUSE")
            pipe.execute()
        self.flush()
