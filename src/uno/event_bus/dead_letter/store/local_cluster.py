"""A Redis Cluster on this machine, for tests, benchmarks and trying things out: ``make cluster``.

Three primaries with replicas, each a process of its own on loopback (`local_node.py`), in a folder that lives as
long as the cluster. Nothing but the server's binary is needed: the nodes are told what ``redis-cli --cluster
create`` would tell them.

The start takes a good 2 s: that long a primary, once started, waits before it takes writes. With the default node
timeout of 1 s a killed primary's slots take writes again after 1.5 to 3 s, when its replica has been elected.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.store.embedded_binary import SINCE_7_0, find_server, version_of
from uno.event_bus.dead_letter.store.layout import SLOTS
from uno.event_bus.dead_letter.store.local_node import HOST, LocalNode, View, free_port, is_free

__all__ = ["LocalCluster", "LocalNode"]

PRIMARIES: Final = 3
PORT_TRIES: Final = 10
POLL_SECONDS: Final = 0.05

FLAGS: Final = {
    "--bind": HOST,
    "--save": "",
    "--cluster-enabled": "yes",
    "--cluster-announce-ip": HOST,
    "--cluster-replica-validity-factor": "0",  # a replica may be elected however long its link was down
    "--cluster-require-full-coverage": "no",  # slots without a primary stop nobody else's
    "--repl-diskless-sync": "yes",
    "--repl-diskless-sync-delay": "0",
}

FOR_LETTERS: Final = {
    "--maxmemory-policy": "noeviction",
    "--stream-node-max-bytes": "1024",
}
"""What deploy/redis/redis.conf says, too, which an installed package has not."""


class LocalCluster:
    """Three primaries, each with `replicas` replicas; a context manager.

    ``binary`` is the server to run: the one that the embedded server uses if it is None (`ConfigError` if there is
    none). ``node_timeout_ms`` is how long a node is silent before the others call it down. Without ``appendonly``
    a node that ends has lost its letters; with it they are fsynced every second. ``options`` are further flags of
    every server's command line, and overrule those here. With ``config_file`` that file of the server, a redis.conf,
    says what letters need (`FOR_LETTERS`), and whatever else is not said here.

    The folder, with the log of each node in ``<port>/server.log``, is removed by `stop`. All methods block, and
    no server outlives this process. The nodes are plain processes of the machine's loopback, without a password.
    """

    def __init__(
        self,
        binary: Path | str | None = None,
        *,
        replicas: int = 1,
        node_timeout_ms: int = 1000,
        appendonly: bool = False,
        options: Sequence[str] = (),
        config_file: Path | None = None,
    ) -> None:
        server = find_server() if binary is None else os.path.abspath(binary)
        flags = FLAGS | {
            "--cluster-node-timeout": str(node_timeout_ms),
            "--appendonly": "yes" if appendonly else "no",
        }
        if config_file is None:
            flags |= FOR_LETTERS
        self._command = [server] if config_file is None else [server, os.path.abspath(config_file)]
        self._command += [word for flag in flags.items() for word in flag]
        self._command += [*(SINCE_7_0 if version_of(server) >= (7, 0) else ()), *options]
        self._replicas = replicas
        self._folder: Path | None = None
        self._nodes: list[LocalNode] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"LocalCluster({', '.join(map(repr, self._nodes)) or 'not running'})"

    @property
    def url(self) -> str:
        """A URL for the engine, ``redis://127.0.0.1:PORT/0?cluster=true``: of the first node that runs."""
        return f"redis://{HOST}:{self._first().port}/0?cluster=true"

    @property
    def nodes(self) -> tuple[LocalNode, ...]:
        """All nodes, also those that are not running: first the three that began as primaries."""
        return tuple(self._nodes)

    def start(self) -> None:
        """Start all nodes, make them a cluster, and return when it serves every slot with replicas in sync.

        Raises `StoreUnavailable` if a server does not start, or they do not agree within 20 s.
        """
        if self._nodes:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="uno-cluster-"))
        try:
            for _ in range(PRIMARIES * (1 + self._replicas)):
                self._start_node()
            self._form()
            self.wait_until_ok()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes (0.1 s, at most 5 s) and remove their folder."""
        for node in self._nodes:
            node.ask_to_end()
        for node in self._nodes:
            node.stop()
        self._nodes = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def add_empty_primary(self) -> LocalNode:
        """Start a further node, without slots, and return it when the others know it."""
        node = self._start_node()
        self._first().client.execute_command("CLUSTER MEET", HOST, node.port)
        self.wait_until_ok()
        return node

    # -- who is who ----------------------------------------------------------------------------------

    def primaries(self) -> list[LocalNode]:
        """Return the nodes that serve slots, in the order of their slots; one that has just died is among them."""
        owners = self._newest_view().owners
        return self._known(sorted(owners, key=lambda id: owners[id][0].start))

    def primary_of(self, slot: int) -> LocalNode:
        """Return the node that serves a slot; `LookupError` if none does."""
        owners = self._newest_view().owners
        for node in self._known([id for id, slots in owners.items() if any(slot in some for some in slots)]):
            return node
        raise LookupError(f"no node serves slot {slot}")

    def replicas_of(self, node: LocalNode) -> list[LocalNode]:
        """Return the replicas of a primary, whether or not they run."""
        primaries = self._newest_view().primaries
        return self._known([id for id in primaries if primaries[id] == node.id])

    def _first(self) -> LocalNode:
        for node in self._nodes:
            if node.is_running and not node.is_paused:
                return node
        raise RuntimeError("no node of the cluster is running: call start() first")

    def _known(self, ids: list[str]) -> list[LocalNode]:
        by_id = {node.id: node for node in self._nodes}
        return [by_id[id] for id in ids if id in by_id]

    def _newest_view(self) -> View:
        views = self._views()
        if not views:
            raise StoreUnavailable("no node of the cluster answers", certain=True)
        return max(views.values(), key=lambda view: view.epoch)

    def _views(self) -> dict[str, View]:
        """Ask all nodes what they believe; those that do not answer are left out."""
        return {node.id: view for node in self._nodes if (view := node.view())}

    def wait_until_ok(self, timeout_s: float = 20.0) -> None:
        """Wait until all nodes that run agree, serve all slots among themselves, and the replicas are in sync.

        After a `kill`, or SIGSTOP, that is when a replica has taken over; after a `start`, or SIGCONT, when the node
        is back in its place.
        Raises `StoreUnavailable`, with what is still missing, after `timeout_s` seconds.
        """
        self._wait_for(self._missing, timeout_s)

    def _missing(self) -> str:
        """Say what keeps the cluster from being ok; nothing if it is."""
        views = self._views()
        if len(views) < sum(node.is_running and not node.is_paused for node in self._nodes) or not views:
            return "a node does not answer"
        owners = next(iter(views.values())).owners
        if any(view.owners != owners for view in views.values()):
            return "nodes disagree on who serves the slots"
        if len({tuple(view.primaries.get(id) for id in views) for view in views.values()}) > 1:
            return "nodes disagree on who is whose replica"
        if sum(len(some) for slots in owners.values() for some in slots) != SLOTS:
            return "not all slots are served"
        if not owners.keys() <= views.keys():
            return "slots are still served by a node that is gone"
        if _strangers(views):
            return "nodes do not know each other"
        if not all(view.is_ok for view in views.values()):
            return "a node is down, or a replica without its primary's data"
        return ""

    def _wait_for(self, missing: Callable[[], str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while why := missing():
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"the cluster is not ready after {timeout_s:g} s: {why}", certain=True)
            time.sleep(POLL_SECONDS)

    # -- making it -----------------------------------------------------------------------------------

    def _start_node(self) -> LocalNode:
        """Start one more server, on another port if somebody is quicker to take the one that was free."""
        assert self._folder is not None, "the cluster has not been started"
        tries = 0
        while True:
            port = free_port()
            node = self._node_at(port, self._folder / str(port))
            try:
                node.start()
            except StoreUnavailable:
                tries += 1
                if tries == PORT_TRIES or is_free(port):
                    raise
            else:
                self._nodes.append(node)
                return node

    def _node_at(self, port: int, folder: Path) -> LocalNode:
        return LocalNode(self._command, folder, port)

    def _form(self) -> None:
        """Give each primary its share of the slots, introduce the nodes, and tell each replica its primary."""
        primaries, replicas = self._nodes[:PRIMARIES], self._nodes[PRIMARIES:]
        for i, node in enumerate(primaries):
            # Different epochs from the start, or the nodes would have to settle who is first.
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
            share = range(SLOTS * i // PRIMARIES, SLOTS * (i + 1) // PRIMARIES)
            node.client.execute_command("CLUSTER ADDSLOTS", *share)  # ADDSLOTSRANGE came with 7.0
        for node in self._nodes[1:]:
            self._nodes[0].client.execute_command("CLUSTER MEET", HOST, node.port)
        self._wait_for(self._unacquainted, 20.0)
        for i, node in enumerate(replicas):
            node.client.execute_command("CLUSTER REPLICATE", primaries[i % PRIMARIES].id)

    def _unacquainted(self) -> str:
        views = self._views()
        return "nodes do not know each other" if len(views) < len(self._nodes) or _strangers(views) else ""


def _strangers(views: dict[str, View]) -> bool:
    """Say whether a node that answers is unknown to another, or out of its reach."""
    away = frozenset({"handshake", "noaddr", "fail", "fail?"})
    return any(view.flags.get(id, away) & away for view in views.values() for id in views)
