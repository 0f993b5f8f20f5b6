"""`verify` and `health`: the exit status tells."""

import pytest

from tests.support.cli import Cli
from tests.support.servers import Server
from uno.event_bus.dead_letter.store.layout import shard_key


@pytest.fixture
def cli(redis_url: str) -> Cli:
    return Cli(redis_url)


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
    assert page.status == 1 and letter_id in page.out and "NOT CLEAN" in page.out


def test_health_exits_0_when_every_shard_answers_and_nothing_evicts(cli: Cli) -> None:
    ran = cli("health")
    assert ran.status == 0 and ran.record["healthy"]
    checks = [check["check"] for check in ran.record["checks"]]
    assert checks == ["server", "eviction", "memory", "layout", "shard 0", "shard 1"]
    assert "noeviction" in cli("health", "-o", "table").out


def test_health_exits_1_on_a_server_that_evicts(cli: Cli, server: Server) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    ran = cli("health")
    assert ran.status == 1 and not ran.record["healthy"]
    assert "allkeys-lru" in next(check["detail"] for check in ran.record["checks"] if not check["ok"])


def test_health_exits_5_when_redis_is_away(cli: Cli) -> None:
    assert cli("health", DLQ_REDIS_URL="unix:///nowhere.sock", DLQ_OPERATION_TIMEOUT="0.2").status == 5
