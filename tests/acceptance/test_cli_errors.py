"""Errors are one line with a status that a script can act on."""

import json
import os
import subprocess

import pytest

from tests.support.cli import COMMAND, Cli, Ran
from tests.support.servers import Server

NOWHERE = "redis://user:secret@127.0.0.1:1/0"


@pytest.fixture
def cli(redis_url: str) -> Cli:
    cli = Cli(redis_url)
    cli.seed()  # an empty queue
    return cli


def one_line(ran: Ran) -> str:
    assert ran.out == "" and ran.err.count("\n") == 1
    return ran.err


@pytest.mark.parametrize("words", [("list", "--nope"), ("lst",), ("show",), ("list", "--state", "lost"), ("retry",)])
def test_a_wrong_command_line_exits_2_and_names_the_help(cli: Cli, words: tuple[str, ...]) -> None:
    ran = cli(*words)
    assert ran.status == 2
    assert "--help)" in one_line(ran)


def test_without_a_redis_url_one_line_names_both_variables(cli: Cli) -> None:
    ran = cli("list", DLQ_REDIS_URL="", REDIS_URL="")
    assert ran.status == 2
    assert "DLQ_REDIS_URL" in one_line(ran) and " REDIS_URL" in ran.err


def test_dlq_redis_url_wins_over_redis_url(cli: Cli) -> None:
    assert cli("stats", REDIS_URL=NOWHERE).status == 0
    assert cli("stats", DLQ_REDIS_URL="", REDIS_URL=cli.url).status == 0


def test_the_option_wins_over_both(cli: Cli) -> None:
    assert cli("stats", "--redis-url", cli.url, DLQ_REDIS_URL=NOWHERE, REDIS_URL=NOWHERE).status == 0


def test_a_bad_setting_exits_2_with_variable_value_and_what_is_allowed(cli: Cli) -> None:
    ran = cli("list", DLQ_SHARDS="3")
    assert ran.status == 2
    assert "DLQ_SHARDS (shards) is '3': allowed is a power of two" in one_line(ran)


def test_a_misspelt_setting_is_an_error_that_knows_the_right_name(cli: Cli) -> None:
    assert "did you mean DLQ_MAX_RETRIES?" in one_line(cli("list", DLQ_MAX_RETRY="3"))


def test_an_unreachable_redis_exits_5_without_its_password(cli: Cli) -> None:
    ran = cli("list", DLQ_REDIS_URL=NOWHERE, DLQ_OPERATION_TIMEOUT="0.2")
    assert ran.status == 5
    assert "127.0.0.1:1" in one_line(ran) and "secret" not in ran.err


def test_an_unknown_letter_exits_3(cli: Cli) -> None:
    assert cli("show", "0-1-1").status == 3
    assert cli("show", "nonsense").status == 3


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", "0-1-1"),
        ("stats",),
        ("retry", "0-1-1"),
        ("retry", "--all", "--yes"),
        ("discard", "0-1-1", "--why", "test"),
        ("clear", "--dry-run"),
        ("clear", "--yes"),
        ("verify",),
        ("health",),
    ],
)
def test_a_misspelt_queue_exits_3_and_is_not_made(cli: Cli, server: Server, words: tuple[str, ...]) -> None:
    cli.seed(("a", {}))
    before = server.client.keys()
    ran = cli(*words, "--queue", "defalt")
    assert ran.status == 3
    assert "there is no queue 'defalt'" in one_line(ran)
    assert sorted(server.client.keys()) == sorted(before)
    assert cli("import", "-", "--queue", "orders", input='{"type":"a","payload":1}').status == 0
    assert cli("stats", "--queue", "orders").record["open"] == 1


@pytest.mark.parametrize("how", [("-o", "json"), ("-ojsonl",), ("--output=json",), ("--output", "jsonl")])
def test_with_json_an_error_is_one_object_on_stderr(cli: Cli, how: tuple[str, ...]) -> None:
    ran = cli("show", "0-1-1", *how)
    assert json.loads(one_line(ran)) == {
        "error": {
            "code": "letter_not_found",
            "message": "no open letter has the id '0-1-1'; ids look like 2-1718000000000-0",
            "status": 3,
        }
    }


def test_a_wrong_option_is_json_too(cli: Cli) -> None:
    error = json.loads(one_line(cli("list", "--nope", "-o", "json")))["error"]
    assert (error["code"], error["status"]) == ("usage", 2)


def test_debug_shows_the_traceback_before_the_line(cli: Cli) -> None:
    ran = cli("show", "0-1-1", "--debug")
    assert ran.err.startswith("Traceback") and ran.err.splitlines()[-1].startswith("uno: error: no open letter")


def test_another_shard_count_than_the_queue_has_is_refused(cli: Cli) -> None:
    cli("stats")
    ran = cli("stats", DLQ_SHARDS="8")
    assert ran.status == 4
    assert "DLQ_SHARDS=2" in one_line(ran)


def test_an_error_never_sends_control_characters_to_the_terminal(cli: Cli) -> None:
    assert "\x1b" not in cli("show", "\x1b[31mred").err


def test_a_reader_that_had_enough_ends_the_command_quietly(cli: Cli) -> None:
    cli.seed(*[("good", {"n": n}) for n in range(3)])
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written
    try:
        command = [*COMMAND, "list", "-o", "jsonl"]
        ran = subprocess.run(
            command, env=cli.environment(), stdout=writer, stderr=subprocess.PIPE, timeout=40, check=False
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")
