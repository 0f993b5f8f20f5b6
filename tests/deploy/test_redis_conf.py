"""redis.conf, with which the servers of the tests start: what it changes of the guide, and who else says the same."""

import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.clusters import Cluster
from tests.support.deployments import CHECKOUT, REDIS_CONF, redis_settings
from tests.support.servers import CONFIGURATION, Server
from uno.event_bus.dead_letter.store import embedded_binary, local_cluster

GUIDE = {
    "maxmemory": "4gb",
    "maxmemory-policy": "allkeys-lru",
    "maxmemory-samples": "10",
    "hash-max-ziplist-entries": "512",
    "hash-max-ziplist-value": "64",
    "list-max-ziplist-size": "-2",
    "set-max-intset-entries": "512",
    "zset-max-ziplist-entries": "128",
    "zset-max-ziplist-value": "64",
    "save": "900 1 300 10 60 10000",
    "appendonly": "yes",
    "appendfsync": "everysec",
}
"""The lines of the deployment guide: its tuning, and its backups."""

FOR_LETTERS = {"maxmemory-policy": "noeviction", "stream-node-max-bytes": "1024"}
"""Without these, letters are lost, or cost nine times their bytes."""


def test_it_says_why_wherever_it_differs_from_the_guide() -> None:
    ours = redis_settings()
    differs = {name for name in GUIDE | ours if GUIDE.get(name) != ours.get(name)}
    assert differs == {
        *("maxmemory-policy", "maxmemory", "stream-node-max-bytes"),
        *("maxmemory-samples", "list-max-ziplist-size", "set-max-intset-entries"),
    }
    comments = re.findall(r"((?:^#.*\n)+)(.*)", REDIS_CONF.read_text(), re.MULTILINE)
    for name in differs:
        assert any("guide" in said and (name in said or line.startswith(f"{name} ")) for said, line in comments), name


def test_it_has_what_letters_need_as_all_others_that_start_servers() -> None:
    cluster = YAML(typ="safe").load(CHECKOUT / "docker-compose.cluster.yml")["x-node"]["command"]
    flags = dict(zip(cluster[1::2], cluster[2::2], strict=True))
    for name, value in FOR_LETTERS.items():
        assert redis_settings()[name] == value
        assert embedded_binary.ALWAYS[f"--{name}"] == value
        assert local_cluster.FOR_LETTERS[f"--{name}"] == value
        assert flags[f"--{name}"] == value
    for name in ("appendonly", "appendfsync"):
        assert embedded_binary.ALWAYS[f"--{name}"] == flags[f"--{name}"] == redis_settings()[name]


def test_the_node_size_is_the_one_that_was_measured() -> None:
    table = (REDIS_CONF.parent / "README.md").read_text()
    assert re.findall(r"\*\*(\d+)\*\*", table) == [FOR_LETTERS["stream-node-max-bytes"]] * 3


def test_a_server_of_the_tests_has_it(server: Server) -> None:
    """But for what `clean` sets before each test, and the command line."""
    assert CONFIGURATION == REDIS_CONF
    said = {name: server.client.config_get(name) for name in redis_settings()}
    of_tests = {"maxmemory": "0", "save": "", "appendonly": "no"}
    assert {name: value[name] for name, value in said.items()} == redis_settings() | of_tests


def test_a_cluster_of_the_tests_starts_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first word, and nothing after it that would say the same."""
    monkeypatch.setattr(local_cluster, "version_of", lambda _: (9, 1))
    monkeypatch.setattr("tests.support.binaries.binary", lambda _: Path(sys.executable))
    command = Cluster()._command
    assert command[:2] == [sys.executable, str(REDIS_CONF)]
    assert not {f"--{name}" for name in FOR_LETTERS} & set(command)
