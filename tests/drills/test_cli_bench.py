"""`bench`: its figures are all there and honest, nothing is lost, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any, override
from uuid import uuid4

import pytest

from tests.support import binaries
from tests.support.cli import Cli, Ran
from tests.support.clusters import Cluster
from tests.support.servers import Server
from uno.event_bus.dead_letter.bench import Options, Watch, options, run, run_bench
from uno.event_bus.dead_letter.errors import StoreUnavailable
from uno.event_bus.dead_letter.rig import queue
from uno.event_bus.dead_letter.store.layout import shard_key

type Spawn = Callable[..., subprocess.Popen[str]]

FEW = ("--letters", "200", "--workers", "1")


class Own:
    """`bench` in a process of its own, with servers of its own, whose every trace can be found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid4().hex
        self._made: list[subprocess.Popen[str]] = []

    def spawn(self, *words: str, **variables: Any) -> "subprocess.Popen[str]":
        variables |= {"TMPDIR": str(self.folder), "UNO_TEST_MARK": self._mark, "REDIS_URL": ""}
        made = Cli("").spawn("bench", *words, **variables)
        self._made.append(made)
        return made

    def end(self) -> None:
        """Kill what a failed test has left."""
        for made in self._made:
            end(made)

    def __call__(self, *words: str, **variables: str) -> Ran:
        process = self.spawn(*words, **variables)
        out, errors = process.communicate(timeout=50)
        return Ran(process.returncode, out, errors)

    def processes(self) -> list[str]:
        """Command lines of all processes that descend from it."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                # Servers write their title over their environment; they live in folders of ours.
                in_folder = (place / "cwd").resolve().is_relative_to(self.folder)
                if in_folder or self._mark.encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_text().replace("\0", " "))
            except OSError:  # another's, or gone meanwhile
                continue
        return found

    def servers(self) -> list[str]:
        """Those of its servers that run."""
        return [words for words in self.processes() if "[cluster]" in words]

    def assert_nothing_left(self) -> None:
        assert list(self.folder.iterdir()) == []
        if sys.platform == "linux":
            until(lambda: not self.processes())  # a guard ends a moment after what it guards


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    folder = tmp_path / "t"
    folder.mkdir()
    made = Own(folder)
    yield made
    made.end()


@pytest.fixture
def spawn(cli: Cli) -> Iterator[Spawn]:
    """Start an endless `bench` on the test's server, in a process of its own that does not outlive the test."""
    made: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "subprocess.Popen[str]":
        made.append(cli.spawn("bench", "--letters", "1000000", "--workers", "1", *words))
        return made[-1]

    yield start
    for process in made:
        end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """Kill it if it runs; its own processes and servers end by that."""
    with process:
        if process.poll() is None:
            process.kill()


def until(fact: Callable[[], object], within_s: float = 30) -> None:
    deadline = monotonic() + within_s
    while not fact():
        assert monotonic() < deadline, "it has not come true"
        sleep(0.02)


def resolved(server: Server) -> int:
    """Letters that the run on this server has resolved."""
    return sum(int(server.client.hget(key, "resolved") or 0) for key in server.client.keys("dlq:{bench-*:meta"))


def assert_sound(ran: Ran, letters: int) -> Any:
    assert ran.status == 0, ran.out + ran.err
    record = ran.record
    assert record["sound"] and record["verify_clean"] and record["violations"] == []
    books = record["books"]
    assert (books["lost"], books["open"]) == (0, 0)
    assert books["acknowledged"] >= letters and books["resolved"] + books["parked"] >= books["acknowledged"]
    return record


def test_all_figures_are_there_and_no_key_is_left(cli: Cli, server: Server) -> None:
    server.client.set("mine", "1")
    words = ("--queue", "mine-1", "--fail-rate", "0.25", "--shards", "4")
    record = assert_sound(cli("bench", *FEW, *words), 200)
    books, setup = record["books"], record["setup"]
    assert books["acknowledged"] == books["captured"] == books["resolved"] == 200
    assert 25 < books["retried"] < 75 and books["runs"] == 200 + books["retried"] and books["duplicates"] == 0
    for name in ("capture", "due_to_start"):
        latency = record[name]
        assert latency["count"] == 200
        assert 0 < latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"] <= latency["max_ms"] < 30_000
    assert record["capture_per_s"] > 0 and record["processing_per_s"] > 0
    [node] = record["nodes"]
    assert (node["address"], node["role"], node["letters"]) == (str(server.socket_path), "primary", 200)
    assert node["cpu_seconds"] > 0 and node["cpu_share"] == 1
    assert len(record["letters_by_shard"]) == 4 and sum(record["letters_by_shard"]) == 200
    assert record["balance_of_shards"] >= 1 and record["balance_of_nodes"] == 1
    assert [process["role"] for process in record["processes"]] == ["producer", "worker"]
    assert record["errors"] == {} and record["failover"] is None
    assert setup["kind"] == "given" and setup["is_shared"] and setup["cores"] >= 1
    assert setup["queue"] == "mine-1" and setup["servers"][0].startswith(server.name.replace("-", " "))
    assert server.client.keys("*") == [b"mine"]


def test_without_a_server_it_brings_one_and_takes_it_away(own: Own) -> None:
    ran = own(*FEW, "-o", "table")
    assert ran.status == 0 and "1 primary, started here for this" in ran.out
    assert ran.out.splitlines()[-1].startswith("lost 0; verify clean; took ")
    own.assert_nothing_left()


def test_a_cluster_of_the_users_is_measured_node_by_node_and_left_empty(cluster: Cluster) -> None:
    words = ("--redis-url", cluster.url, *FEW, "--shards", "16", "--durability", "replicated")
    record = assert_sound(Cli("")("bench", *words), 200)
    assert [node["role"] for node in record["nodes"]] == ["primary"] * 3 + ["replica"] * 3
    assert {node["address"] for node in record["nodes"]} == {f"127.0.0.1:{node.port}" for node in cluster.nodes}
    assert sum(node["letters"] for node in record["nodes"]) == 200
    assert min(node["letters"] for node in record["nodes"][:3]) > 30
    assert abs(sum(node["cpu_share"] for node in record["nodes"]) - 1) < 0.01
    assert all(node.client.keys("*") == [] for node in cluster.primaries())


def test_a_killed_primary_is_made_up_for_and_costs_no_letter(own: Own) -> None:
    record = assert_sound(own("--cluster", "--kill-primary", "--durability", "replicated", *FEW), 200)
    failover = record["failover"]
    assert 0.5 < failover["answered_after_s"] < failover["restarted_after_s"] < 50
    assert 0 < failover["capture_gap_s"] < 50 and 0 < failover["start_gap_s"] < 50
    changed = [node for node in record["nodes"] if node["role"] != node["role_before"]]
    assert {node["role_before"] for node in changed} == {"primary", "replica"}
    assert failover["node"] in {node["address"] for node in changed}
    own.assert_nothing_left()


# -- what it refuses --------------------------------------------------------------------------------------


def test_a_queue_that_holds_letters_is_refused_and_left_as_it_is(cli: Cli) -> None:
    cli.seed(("good", {}), ("good", {}))
    ran = cli("bench", "--queue", "default", *FEW)
    assert ran.status == 4 and ran.out == "" and ran.err.count("\n") == 1
    assert "queue 'default' exists and holds 2 letters" in ran.err
    assert cli("stats").record["open"] == 2


def test_a_queue_that_is_there_and_empty_is_refused_too(cli: Cli, server: Server) -> None:
    cli.seed()
    before = server.client.keys("*")
    assert cli("bench", "--queue", "default", *FEW).status == 4
    assert before and server.client.keys("*") == before


def test_letters_of_a_queue_that_no_worker_has_opened_are_safe(cli: Cli, server: Server) -> None:
    server.client.xadd(shard_key("raw", 1, "letters"), {"payload": "{}"})
    ran = cli("bench", "--queue", "raw", *FEW)
    assert ran.status == 4 and "holds 1 letter:" in ran.err
    assert len(server.client.keys("*")) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--kill-primary",), "only a node that the benchmark has started itself"),
        (("--kill-primary", "--redis-url", "redis://127.0.0.1:1/0"), "only a node that the benchmark has started"),
        (("--cluster", "--redis-url", "redis://127.0.0.1:1/0"), "a cluster of its own"),
        (("--shards", "3"), "a power of two"),
        (("--letters", "0"), "--letters"),
        (("--fail-rate", "1.5"), "--fail-rate"),
    ],
)
def test_what_does_not_go_together_exits_2_with_one_line(
    cli: Cli, server: Server, words: tuple[str, ...], why: str
) -> None:
    ran = cli("bench", *words)
    assert ran.status == 2 and ran.out == "" and ran.err.count("\n") == 1
    assert why in ran.err
    assert server.client.keys("*") == []


def test_durability_that_the_server_cannot_give_is_one_line_and_leaves_nothing(cli: Cli, server: Server) -> None:
    ran = cli("bench", *FEW, "--durability", "replicated", DLQ_OPERATION_TIMEOUT="2")
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert "durability replicated is not to be had here" in ran.err
    assert server.client.keys("*") == []


@pytest.mark.parametrize(("words", "replicas"), [((), "0"), (("--cluster",), "1")])
def test_its_own_servers_can_confirm_what_is_asked_of_them(own: Own, words: tuple[str, ...], replicas: str) -> None:
    """Valkey's disk is waited for with appendfsync always alone."""
    assert_sound(own(*words, "--durability", "fsynced", *FEW, DLQ_DURABLE_REPLICAS=replicas), 200)


def test_a_server_that_is_away_exits_5_without_the_password() -> None:
    ran = Cli("")("bench", "--redis-url", "redis://:secret@127.0.0.1:1/0", DLQ_OPERATION_TIMEOUT="0.2")
    assert ran.status == 5 and ran.err.count("\n") == 1
    assert "secret" not in ran.err


# -- when it is not left alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_run_cleans_up(spawn: Spawn, server: Server, number: signal.Signals) -> None:
    server.client.set("mine", "1")
    process = spawn()
    until(lambda: resolved(server) > 100)
    process.send_signal(number)
    out, errors = process.communicate(timeout=40)
    assert (process.returncode, out, errors) == (130, "", "uno: error: interrupted\n")
    assert server.client.keys("*") == [b"mine"]
    until(lambda: len(server.connections()) == 1)


def test_an_interrupted_outage_leaves_no_node(own: Own) -> None:
    process = own.spawn("--cluster", "--kill-primary", "--letters", "100", "--workers", "1")
    until(lambda: len(own.servers()) == 6, within_s=30)
    until(lambda: len(own.servers()) == 5, within_s=30)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 130
    own.assert_nothing_left()


def test_a_worker_that_dies_ends_it_with_one_line_and_leaves_nothing(spawn: Spawn, server: Server) -> None:
    process = spawn()
    until(lambda: resolved(server) > 100)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "has ended early: killed by SIGKILL" in errors and errors.count("\n") == 1
    assert server.client.keys("*") == []


def test_nothing_of_a_killed_run_goes_on(spawn: Spawn, server: Server) -> None:
    process = spawn()
    until(lambda: resolved(server) > 100)
    process.kill()
    until(lambda: len(server.connections()) == 1)


class Meddler(Watch):
    """Does something to the queue in the middle of the work, once; `act` answers False when it could not yet."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.said: list[str] = []
        self._act = act
        self._acted = False

    @override
    def done(self, letters: int) -> None:
        self._acted = self._acted or self._act() is not False

    @override
    def say(self, line: str) -> None:
        self.said.append(line)


async def test_letters_of_a_stream_that_somebody_deletes_are_lost(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setattr(options, "RETRY_S", 1.0)  # all letters are there for so long

    def delete() -> bool:
        letters = {key: server.client.xlen(key) for key in server.client.keys("dlq:{bench-*:letters")}
        return any(letters.values()) and bool(server.client.delete(*letters))

    wanted = Options(redis_url=server.url, letters=500, workers=1, fail_rate=1.0, shards=2)
    report = await run_bench(wanted, Meddler(delete))
    assert report.books.acknowledged == 500 and report.books.lost > 0 and not report.sound
    assert server.client.keys("*") == []


async def test_a_server_that_stays_away_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE_S", 0.5)
    monkeypatch.setattr(queue, "ERASING_S", 0.5)
    monkeypatch.setenv("DLQ_OPERATION_TIMEOUT", "0.3")
    with Server(binaries.EMBEDDED) as server:
        meddler = Meddler(server.stop)
        with pytest.raises(StoreUnavailable):
            await run_bench(Options(redis_url=server.url, letters=1_000_000, workers=1), meddler)
    [line] = meddler.said
    assert "are left on the server" in line


async def test_a_node_of_the_users_that_dies_leaves_no_key(cluster: Cluster) -> None:
    url_names = cluster.primaries()[0]
    url = f"redis://127.0.0.1:{url_names.port}/0?cluster=true"
    report = await run_bench(Options(redis_url=url, letters=500, workers=1), Meddler(url_names.kill))
    assert any("shards have changed their nodes" in note for note in report.notes)
    assert [node.role for node in report.nodes].count("away") == 1
    assert all(node.client.keys("*") == [] for node in cluster.primaries())


def test_a_terminal_gets_a_bar_and_a_pipe_json(cli: Cli) -> None:
    status, screen, out = cli.on_terminal("bench", *FEW, stdout_elsewhere=True)
    assert status == 0 and "start processes" in screen
    assert json.loads(out)["books"]["lost"] == 0
