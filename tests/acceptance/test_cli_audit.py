"""`audit`: what operators have done, for people and for programs."""

import json
from functools import partial
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.servers import Server
from uno.event_bus.dead_letter import LetterNotFound, acting_as
from uno.event_bus.dead_letter.actor import process_user


@pytest.fixture
def cli(redis_url: str) -> Cli:
    cli = Cli(redis_url)
    cli.seed()  # an empty queue
    return cli


def rows(cli: Cli, *words: str) -> list[str]:
    return cli("audit", "-o", "table", *words, COLUMNS="200").out.splitlines()


async def missed(id: str, queue: Any) -> None:
    with pytest.raises(LetterNotFound):
        await queue.park(id, "test")


def test_commands_are_recorded_as_done_by_their_user(cli: Cli) -> None:
    """JSON has both entries of a call, the outcome first."""
    first, second = cli.seed(("a", {}), ("b", {}))
    assert cli("discard", first, "--why", "test data").status == 0
    assert cli("clear", "--type", "b", "--yes").status == 0
    cleared, _, discarded, intent = cli("audit").records
    assert (cleared["verb"], cleared["which"], cleared["count"]) == ("discard", {"where": {"type": ["b"]}}, None)
    assert (cleared["why"], cleared["done"]) == ("cleared", 1)
    assert (discarded["which"], discarded["why"], discarded["outcome"]) == ({"ids": [first]}, "test data", "done")
    assert discarded["who"] == f"cli:{process_user()}"
    assert (intent["phase"], intent["call"], intent["outcome"]) == ("intent", discarded["call"], "")
    assert discarded["at"] >= intent["at"] and discarded["at"].endswith("Z")
    assert second not in cli("audit").out


def test_a_table_has_a_row_for_each_call(cli: Cli) -> None:
    """The newest first, with what became of it."""
    ids = cli.seed(("a", {}), ("b", {}), ("c", {}), ("d", {}))
    cli("retry", "0-1-1")
    cli("retry", *ids)
    cli("clear", "--state", "parked", "--state", "held", "--why", "old", "--yes")
    cli.do(partial(missed, "0-1-1"))
    cli("reshard", "4")
    head, grown, missing, cleared, retried, lost = rows(cli)
    assert head.split() == ["when", "who", "verb", "letters", "outcome", "why", "request"]
    narrow = cli("audit", "-o", "table", COLUMNS="80").out.splitlines()
    assert narrow[0].split() == head.split()[:5] and max(map(len, narrow)) <= 80
    assert "reshard" in grown and "to 4 shards" in grown and "done" in grown
    assert "letter_not_found" in missing and process_user() in missing and "cli:" not in missing
    assert "state parked or held" in cleared and "old" in cleared and "0 done" in cleared
    assert f"{ids[0]} and 3 more" in retried and "4 done" in retried
    assert "0-1-1" in lost and "1 not found" in lost and "done" not in lost


def test_of_a_call_that_was_killed_the_table_says_so(cli: Cli, server: Server) -> None:
    """Its intent stands alone; a stranger's entry stops nobody, and nothing in it is obeyed."""
    [id] = cli.seed(("a", {}))
    cli("retry", id)
    [outcome, _] = cli("audit").records
    server.client.xdel("dlq:{default}:audit", outcome["id"])
    assert "no outcome" in rows(cli)[1]
    server.client.xadd("dlq:{default}:audit", {"who": "\x1b[2J", "which": "[1]", "verb": "x\ny"})
    assert "\x1b" not in "".join(rows(cli)) and "\\x1b[2J" in rows(cli)[1] and "x y" in rows(cli)[1]
    assert cli("audit").records[0]["which"] == "[1]"


def test_limit_and_request_choose(cli: Cli) -> None:
    """A limit counts rows of the table, entries in JSON."""

    async def act(queue: Any) -> None:
        for number in range(4):
            with acting_as("token:ops", f"r{number // 2}"):
                await queue.retry_many({})

    cli.do(act)
    ran = cli("audit", "-o", "table", "--limit", "3")
    assert len(ran.out.splitlines()) == 4 and ran.err == "3 shown, and there are older ones (--limit 0: all)\n"
    assert cli("audit", "-o", "table", "--limit", "4").err == "4 shown\n"
    assert [entry["phase"] for entry in cli("audit", "--limit", "3").records] == ["outcome", "intent", "outcome"]
    found = cli("audit", "--request", "r0").records
    assert len(found) == 4 and {entry["request_id"] for entry in found} == {"r0"}
    assert len(rows(cli, "--request", "r1")) == 3
    assert json.loads(cli("audit", "-o", "json", "--request", "none").out) == []


def test_a_queue_without_any_is_an_empty_table(cli: Cli) -> None:
    ran = cli("audit", "-o", "table")
    assert (ran.status, ran.out, ran.err) == (0, "", "0 shown\n")
    assert cli("audit", "--queue", "nobodys").status == 3
