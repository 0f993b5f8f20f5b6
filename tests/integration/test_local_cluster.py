"""The local cluster: up with all replicas, whole again after a primary's death, and never left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.support import binaries
from tests.support.clusters import Cluster
from uno.event_bus.dead_letter.errors import ConfigError, StoreUnavailable
from uno.event_bus.dead_letter.store import local_cluster, local_node
from uno.event_bus.dead_letter.store.layout import slot_of
from uno.event_bus.dead_letter.store.local_cluster import LocalCluster
from uno.event_bus.dead_letter.store.local_node import HOST, LocalNode, free_port, is_free

CHECKOUT = Path(__file__).parents[2]
SOON_SECONDS = 20.0  # a bound for what takes milliseconds: only a failing test waits for it

# One process for all: its tests share a cluster, whose start takes 2 s.
pytestmark = pytest.mark.xdist_group("local-cluster")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_served(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((HOST, port)) == 0


def children() -> set[int]:
    """The processes of this one, also those that have ended and were not waited for."""
    run = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in run.stdout.splitlines()]
    return {int(pid) for pid, parent, name in rows if int(parent) == os.getpid() and name != "ps"}


def write(node: LocalNode, key: str) -> int:
    """Add an entry and wait for its replica; give how many there are."""
    node.client.xadd(key, {"n": 1})
    assert node.client.wait(1, 9000) == 1
    return int(node.client.xlen(key))


class Script:
    """What `make cluster` runs, as another process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(CHECKOUT / "scripts" / "cluster.py")]
        environment = os.environ | {"TMPDIR": str(folder)}  # files, unlike processes, stay after SIGKILL
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def nodes(self) -> dict[int, int]:
        """Read what it says until it is ready; give the process of each port."""
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        assert re.search(r"REDIS_URL='redis://127.0.0.1:\d+/0\?cluster=true'", said)
        return {int(port): int(pid) for port, pid in re.findall(r"(\d+) \(pid (\d+)\)", said)}

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and give the exit code."""
        self._process.send_signal(number)
        with self._process:
            return self._process.wait(SOON_SECONDS)


@pytest.fixture(scope="module", params=binaries.chosen())
def shared(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    shared.clean()
    return shared


class TestMembers:
    def test_three_primaries_serve_all_slots_and_each_has_a_replica_in_sync(self, cluster: Cluster) -> None:
        primaries = cluster.primaries()
        replicas = [replica for primary in primaries for replica in cluster.replicas_of(primary)]
        assert len(primaries) == len(replicas) == 3
        assert {*primaries, *replicas} == {*cluster.nodes}
        for node in cluster.nodes:
            info = node.client.execute_command("CLUSTER INFO")
            assert (info["cluster_state"], info["cluster_slots_ok"]) == ("ok", "16384")
        assert [node.is_primary() for node in primaries + replicas] == [True] * 3 + [False] * 3
        assert [replica.client.info("replication")["master_link_status"] for replica in replicas] == ["up"] * 3
        assert [cluster.primary_of(slot) for slot in (0, 8000, 16383)] == primaries

    def test_no_port_is_one_of_which_the_kernel_makes_connections(self, cluster: Cluster) -> None:
        assert all(node.port < 22_768 and not is_free(node.port) for node in cluster.nodes)


class TestFailover:
    def test_a_replica_takes_over_from_a_killed_primary_which_returns_as_its_replica(self, cluster: Cluster) -> None:
        slot = slot_of("orders")
        old = cluster.primary_of(slot)
        (heir,) = cluster.replicas_of(old)
        assert write(old, "orders") == 1
        heir.client.config_set("cluster-replica-no-failover", "yes")  # not before it was looked at
        old.kill()
        assert not old.is_running
        with pytest.raises(StoreUnavailable, match="slots are still served by a node that is gone"):
            cluster.wait_until_ok(timeout_s=0)
        heir.client.config_set("cluster-replica-no-failover", "no")
        assert cluster.url in {f"redis://127.0.0.1:{node.port}/0?cluster=true" for node in cluster.nodes if node != old}
        cluster.wait_until_ok()
        assert cluster.primary_of(slot) is heir and heir.is_primary()
        old.start()
        cluster.wait_until_ok()
        assert not old.is_primary()
        assert cluster.replicas_of(heir) == [old]
        assert write(heir, "orders") == 2

    def test_a_replica_takes_over_from_a_primary_that_hangs(self, cluster: Cluster) -> None:
        old = cluster.primaries()[1]
        (heir,) = cluster.replicas_of(old)
        old.send(signal.SIGSTOP)
        wait_for(lambda: old.is_paused)
        cluster.wait_until_ok()
        assert cluster.primaries()[1] is heir
        assert old.is_running
        old.send(signal.SIGCONT)
        cluster.wait_until_ok()
        assert cluster.replicas_of(heir) == [old]


class TestFurtherNodes:
    def test_an_empty_primary_takes_a_slot_and_data_on_disk_survive_its_end(self) -> None:
        with Cluster(replicas=0, appendonly=True) as cluster:
            node = cluster.add_empty_primary()
            assert node.is_primary()
            assert node not in cluster.primaries()
            slot = slot_of("orders")
            old = cluster.primary_of(slot)
            node.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", old.id)
            for side in (node, old):
                side.client.execute_command("CLUSTER SETSLOT", slot, "NODE", node.id)
            cluster.wait_until_ok()
            assert cluster.primary_of(slot) is node
            node.client.set("orders", "1")
            node.stop()
            node.start()
            assert node.client.dbsize() == 1


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster counts as ready when its nodes know each other, 2 s before it serves."""
    monkeypatch.setattr(LocalCluster, "wait_until_ok", lambda _: None)


class TestStart:
    def test_ports_are_chosen_among_those_that_are_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = free_port()
        while not is_free(first + 1):  # other test processes have their clusters in the same range
            first = free_port()
        monkeypatch.setattr(local_node, "PORTS", range(first, first + 2))
        for taken in (first, first + local_node.BUS_OFFSET):
            with socket.create_server((HOST, taken)):
                assert not is_free(first)
                assert free_port() == first + 1
        with (
            socket.create_server((HOST, first)),
            socket.create_server((HOST, first + 1)),
            pytest.raises(StoreUnavailable, match=f"no port from {first} to {first + 1} is free"),
        ):
            free_port()

    @pytest.mark.usefixtures("no_wait")
    def test_a_port_that_is_taken_meanwhile_is_given_up_for_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken, chosen = free_port(), list[int]()

        def choose() -> int:
            chosen.append(free_port() if chosen else taken)
            return chosen[-1]

        monkeypatch.setattr(local_cluster, "free_port", choose)
        with socket.create_server((HOST, taken)), Cluster(replicas=0) as cluster:
            ports = [node.port for node in cluster.nodes]
        assert chosen[0] == taken and set(ports) <= set(chosen[1:])

    def test_a_server_that_does_not_start_is_an_error_with_its_log(self) -> None:
        before = children()
        with pytest.raises(StoreUnavailable, match=r"does not start on port .*no-such-option"):
            Cluster(options=("--no-such-option", "1")).start()
        assert children() == before

    def test_a_binary_that_is_no_server_is_a_config_error(self) -> None:
        with pytest.raises(ConfigError, match="python"):
            LocalCluster(sys.executable)


class TestNothingStays:
    @pytest.mark.usefixtures("no_wait")
    def test_stop_leaves_no_process_no_port_and_no_file(self) -> None:
        before = children()
        with Cluster(replicas=0) as cluster:
            assert children() > before
            ports = [node.port for node in cluster.nodes]
            folder = Path(cluster.nodes[0].client.config_get("dir")["dir"]).parent
            cluster.nodes[0].kill()
            cluster.nodes[1].send(signal.SIGSTOP)
        assert children() == before
        assert all(is_free(port) for port in ports)
        assert not folder.exists()

    def test_a_server_does_not_end_with_the_thread_that_started_it(self, tmp_path: Path) -> None:
        node = LocalNode([str(binaries.binary(binaries.EMBEDDED)), "--bind", HOST], tmp_path, free_port())
        thread = Thread(target=node.start)
        thread.start()
        thread.join()
        assert node.client.ping()
        node.stop()

    def test_servers_end_with_their_process_however_it_ends(self, tmp_path: Path) -> None:
        scripts = {number: Script(tmp_path) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)}
        nodes = {number: script.nodes() for number, script in scripts.items()}
        assert {len(pid_of_port) for pid_of_port in nodes.values()} == {6}
        os.kill(next(iter(nodes[signal.SIGKILL].values())), signal.SIGSTOP)
        exit_codes = {number: script.end(number) for number, script in scripts.items()}
        assert exit_codes == {signal.SIGTERM: 0, signal.SIGINT: 0, signal.SIGKILL: -signal.SIGKILL}
        ports = [port for pid_of_port in nodes.values() for port in pid_of_port]
        wait_for(lambda: not any(map(is_served, ports)))  # who was killed had nobody wait for its servers
