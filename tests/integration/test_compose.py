"""docker-compose.cluster.yml: valid, and its flags and its init script make a cluster of six nodes.

Without Docker: each node runs the file's own command on an address of the loopback, the script runs in a shell of
this machine, and Debian's redis-cli answers to the name valkey-cli.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from tests.support import binaries
from uno.event_bus.dead_letter.store.local_node import free_port

CHECKOUT = Path(__file__).parents[2]
FILE = CHECKOUT / "docker-compose.cluster.yml"
NODES = [f"node-{i}" for i in range(1, 7)]

pytestmark = pytest.mark.xdist_group("compose")


def compose(port: str = "7000", **variables: str) -> Any:
    """The file as compose reads it: variables replaced by their values or defaults, ``$$`` by ``$``.

    Another port takes the place of 7000, which may be in use on this machine.
    """

    def value(found: re.Match[str]) -> str:
        return "$" if found["dollar"] else variables.get(found["name"], found["default"])

    pattern = r"(?P<dollar>\$\$)|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}"
    return YAML(typ="safe").load(re.sub(pattern, value, FILE.read_text().replace("7000", port)))


def test_the_file_fits_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    run = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_node_has_an_address_and_a_volume_of_its_own() -> None:
    file = compose(CLUSTER_NET="10.1.2")
    nodes = [file["services"][name] for name in NODES]
    addresses = [node["networks"]["default"]["ipv4_address"] for node in nodes]
    assert addresses == [f"10.1.2.1{i}" for i in range(1, 7)]
    assert file["networks"]["default"]["ipam"]["config"][0]["subnet"] == "10.1.2.0/24"
    assert [node["volumes"] for node in nodes] == [[f"{name}:/data"] for name in NODES]
    assert sorted(file["volumes"]) == NODES
    assert len({str(node["command"]) for node in nodes}) == 1 and all(node["healthcheck"] for node in nodes)


def test_workers_start_by_their_profile_alone_once_the_cluster_is_made() -> None:
    services = compose()["services"]
    assert [name for name, service in services.items() if service.get("profiles")] == ["worker"]
    worker = services["worker"]
    assert worker["command"] == ["python", "-m", "uno.cli.main", "dead-letter", "worker"]
    assert worker["environment"]["REDIS_URL"] == "redis://node-1:7000/0?cluster=true"
    assert worker["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert services["init"]["depends_on"] == {name: {"condition": "service_healthy"} for name in NODES}
    copied = re.findall(r"^COPY (.+) \S+$", worker["build"]["dockerfile_inline"], re.MULTILINE)
    assert all((CHECKOUT / path).exists() for line in copied for path in line.split())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback has one address")
class TestInit:
    def test_it_makes_a_cluster_and_repeated_changes_nothing_but_heals_addresses(self, tmp_path: Path) -> None:
        port = str(free_port())
        with nodes(tmp_path, "127.0.77", port, timeout_ms="5000"):  # nobody takes over from a node that is slow
            made = init(tmp_path, "127.0.77", port)
            assert [row.flags for row in made.values()].count("master") == 3
            assert [row.flags for row in made.values()].count("slave") == 3
            again = init(tmp_path, "127.0.77", port)
            assert again == made
        with nodes(tmp_path, "127.0.78", port):
            moved = init(tmp_path, "127.0.78", port)
        assert {row.address for row in moved.values()} == {f"127.0.78.1{i}" for i in range(1, 7)}
        assert moved.keys() == made.keys()
        assert sorted(row.slots for row in moved.values()) == sorted(row.slots for row in made.values())


class Row(NamedTuple):
    """What CLUSTER NODES tells of one node."""

    address: str
    flags: str
    primary: str
    slots: tuple[str, ...]


@contextmanager
def nodes(folder: Path, net: str, port: str, timeout_ms: str = "1000") -> Iterator[None]:
    """The six nodes as the file starts them, but with data that stay in `folder`, and a shorter timeout."""
    binary = binaries.binary(binaries.EMBEDDED)
    services = compose(port)["services"]
    with ExitStack() as stack:
        for i, name in enumerate(NODES, 1):
            server, *flags = services[name]["command"]
            assert server == "valkey-server"
            address = f"{net}.1{i}"
            flags += ["--bind", address, "--bind-source-addr", address, "--cluster-node-timeout", timeout_ms]
            (folder / name).mkdir(exist_ok=True)
            node = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", binary, *flags],
                cwd=folder / name,
                stdout=subprocess.DEVNULL,
            )
            stack.callback(node.wait)
            stack.callback(node.kill)
            _, _, *ping = services[name]["healthcheck"]["test"]
            while subprocess.run([cli(folder), "-h", address, *ping], capture_output=True, check=False).returncode:
                assert node.poll() is None
        yield


def init(folder: Path, net: str, port: str) -> dict[str, Row]:
    """Run the init service; give what it says at the end, the rows of CLUSTER NODES by id."""
    service = compose(port, CLUSTER_NET=net)["services"]["init"]
    run = subprocess.run(
        [*service["entrypoint"], *service["command"]],
        env=service["environment"] | {"PATH": f"{cli(folder).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [row.split() for row in run.stdout.splitlines() if row]
    return {
        id: Row(address.partition(":")[0], flags.removeprefix("myself,"), primary, tuple(slots))
        for id, address, flags, primary, _, _, _, _, *slots in rows
    }


def cli(folder: Path) -> Path:
    """A redis-cli by the name of valkey-cli."""
    link = folder / "bin" / "valkey-cli"
    if not link.exists():
        found = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if found is None:
            pytest.skip("neither valkey-cli nor redis-cli is on this machine (Debian's package redis-tools)")
        link.parent.mkdir()
        link.symlink_to(found)
    return link
