"""`verify` and `health`: the exit status tells."""

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.layout import shard_key


@pytest.fixture
def cli(redis_url: str) -> Cli:
    cli = Cli(redis_url)
    cli.seed()  # an empty queue
    return cli


def test_verify_of_a_sound_queue_exits_0_with_its_books(cli: Cli) -> None:
    cli.seed(("a", {}), ("b", {}))
    ran = cli("verify")
    assert ran.status == 0
    assert ran.record["clean"] and ran.record["captured"] == ran.record["letters"] == 2
    assert cli("verify", "-o", "table").out.splitlines()[-1] == "clean"


def test_verify_of_a_broken_queue_exits_1_and_names_the_letter(cli: Cli, server: Server) -> None:
    [letter_id] = cli.seed(("a", {}))
    cli.do(lambda queue: queue.park(letter_id, "test"))
    shard, _, stream_id = letter_id.partition("-")
    server.client.zadd(shard_key("default", int(shard), "held"), {stream_id: 1})
    ran = cli("verify")
    assert ran.status == 1
    assert not ran.record["clean"] and ran.record["violations"][0]["letter_id"] == letter_id
    page = cli("verify", "-o", "table")
    assert page.status == 1 and letter_id in page.out and "NOT CLEAN: 1 twice" in page.out


def test_verify_says_that_and_by_how_much_the_books_do_not_come_out_even(cli: Cli, server: Server) -> None:
    cli.seed(("a", {}), ("b", {}))
    assert "captured 2 = resolved 0 + " in cli("verify", "-o", "table").out
    key = shard_key("default", 0, "meta")
    server.client.hincrby(key, "captured", 3)
    page = cli("verify", "-o", "table")
    assert page.status == 1
    assert "captured 5 ≠ resolved 0 + discarded 0 + expired 0 + lost externally 0 + open 2: 3 gone without an end" in (
        page.out
    )
    assert page.out.splitlines()[-1] == "NOT CLEAN: 1 drift"
    assert cli("verify").record["difference"] == 3


def test_letters_that_strangers_added_are_no_violation_but_no_equality_either(cli: Cli, server: Server) -> None:
    [letter_id] = cli.seed(("a", {}))
    server.client.xadd(shard_key("default", int(letter_id[0]), "letters"), {"type": "a", "payload": b"1"})
    page = cli("verify", "-o", "table")
    assert page.status == 0 and page.out.splitlines()[-1] == "clean"
    assert "captured 1 ≠ " in page.out and "open 2: 1 not taken in yet" in page.out


def test_verify_shows_a_bar_on_a_terminal_and_nowhere_else(cli: Cli) -> None:
    cli.seed(("a", {}))
    assert cli("verify").err == ""
    status, screen, out = cli.on_terminal("verify", stdout_elsewhere=True)
    assert status == 0 and "verify" in screen and "100%" in screen and "\x1b" not in out


def test_health_exits_0_when_every_shard_answers_and_nothing_evicts(cli: Cli) -> None:
    ran = cli("health")
    assert ran.status == 0 and ran.record["healthy"]
    checks = [check["check"] for check in ran.record["checks"]]
    assert checks == ["server", "eviction", "memory", "layout", "shard 0", "shard 1"]
    assert "noeviction" in cli("health", "-o", "table").out


def test_health_looks_at_the_spool(cli: Cli, tmp_path: Path) -> None:
    """One that is nearly full refuses captures soon; one whose disk does not tell is not fit."""
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "1-1-1.000001.spool.damaged").write_bytes(bytes(5000))
    for most, healthy in (("6000", True), ("5500", False)):
        ran = cli("health", DLQ_SPOOL_DIR=str(tmp_path), DLQ_SPOOL_MAX_BYTES=most)
        assert (ran.status, ran.record["healthy"]) == (int(not healthy), healthy)
        assert ran.record["checks"][-1]["check"] == "spool"
        assert "0 letters wait" in ran.record["checks"][-1]["detail"]
    (tmp_path / "default" / "x").symlink_to("x")
    ran = cli("health", DLQ_SPOOL_DIR=str(tmp_path))
    assert (ran.status, ran.record["checks"][-1]["ok"]) == (1, False)


def test_health_exits_1_on_a_server_that_evicts(cli: Cli, server: Server) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    ran = cli("health")
    assert ran.status == 1 and not ran.record["healthy"]
    assert "allkeys-lru" in next(check["detail"] for check in ran.record["checks"] if not check["ok"])


def test_health_exits_5_when_redis_is_away(cli: Cli) -> None:
    assert cli("health", DLQ_REDIS_URL="unix:///nowhere.sock", DLQ_OPERATION_TIMEOUT="0.2").status == 5
