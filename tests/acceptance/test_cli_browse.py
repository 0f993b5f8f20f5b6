"""`list`, `show` and `stats`: what people and programs see."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import COMMAND, Cli
from uno.event_bus.dead_letter import DeadLetterConfig
from uno.event_bus.dead_letter.blocking import DeadLetterQueue

EVIL = "\x1b]0;owned\x07\x1b[31mred [bold]not markup[/bold] \u202eback \x9b2J"


@pytest.fixture
def cli(redis_url: str) -> Cli:
    cli = Cli(redis_url)
    cli.seed()  # an empty queue
    return cli


def test_in_a_pipe_list_prints_one_json_object_a_letter(cli: Cli) -> None:
    ids = cli.seed(("a", {"n": 1}), ("b", {"n": 2}), error="ValueError: no", subscription_id="mail")
    records = cli("list").records
    assert sorted(record["id"] for record in records) == sorted(ids)
    first = next(record for record in records if record["type"] == "a")
    assert first["state"] == "waiting" and first["subscription"] == "mail" and first["failures"] == 0
    assert first["captured_at"].endswith("Z") and first["due_at"] > first["captured_at"]
    assert "payload" not in first


def test_json_is_one_array_also_of_nothing(cli: Cli) -> None:
    assert cli("list", "-o", "json").record == []
    cli.seed(("a", {}), ("b", {}))
    assert len(cli("list", "-o", "json").record) == 2


@pytest.mark.parametrize(
    ("words", "types"),
    [
        (("--type", "a"), ["a"]),
        (("--type", "a", "--type", "b"), ["a", "b"]),
        (("--type", "a", "--state", "parked"), []),
        (
            (
                "--state",
                "waiting",
            ),
            ["a", "b"],
        ),
        (("--event-id", "e-b"), ["b"]),
        (("--limit", "1"), [...]),
    ],
)
def test_filters_choose_the_letters(cli: Cli, words: tuple[str, ...], types: list[Any]) -> None:
    for name in ("a", "b"):
        cli.seed((name, {}), event_id=f"e-{name}")
    found = sorted(record["type"] for record in cli("list", *words).records)
    assert len(found) == 1 if types == [...] else found == types


def test_a_table_never_shortens_an_id_and_fits_its_width(cli: Cli) -> None:
    [letter_id] = cli.seed(("a-rather-long-type-of-an-event", {}), error="ValueError: " + "long " * 50)
    for width in (60, 80, 140):
        lines = cli("list", "-o", "table", COLUMNS=str(width)).out.splitlines()
        assert letter_id in lines[1] and "waiting" in lines[1]
        assert max(map(len, lines)) <= width


def test_a_table_stops_at_100_letters_and_says_so(cli: Cli) -> None:
    cli.seed(*[("a", {"n": n}) for n in range(101)])
    shown = cli("list", "-o", "table")
    assert len(shown.out.splitlines()) == 101
    assert "101 open" in shown.err and "--limit 0" in shown.err
    assert len(cli("list", "-o", "table", "--limit", "0").out.splitlines()) == 102
    assert len(cli("list").records) == 101


def test_show_has_all_of_a_letter(cli: Cli) -> None:
    [letter_id] = cli.seed(("order", {"n": 1}), error=ValueError("no stock"), headers={"tenant": "t1"}, event_id="e1")
    record = cli("show", letter_id).record
    assert record["payload"] == {"n": 1} and record["payload_bytes"] == 7
    assert record["error"] == "no stock" and record["error_type"] == "ValueError"
    assert record["headers"]["tenant"] == "t1" and record["event_id"] == "e1" and record["history"] == []
    page = cli("show", letter_id, "-o", "table").out
    for word in (letter_id, "no stock", "tenant", '"n": 1', "e1", "0 failures"):
        assert word in page


def test_show_payload_writes_the_very_bytes(cli: Cli) -> None:
    payload = bytes(range(256))
    [letter_id] = cli.do(lambda queue: queue.add_many([payload]))
    command = [*COMMAND, "show", letter_id, "--payload"]
    assert subprocess.run(command, env=cli.environment(), stdout=subprocess.PIPE, check=True).stdout == payload
    assert "payload_base64" in cli("show", letter_id).record


@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
def test_stored_control_characters_never_reach_the_terminal(cli: Cli, output: str) -> None:
    [letter_id] = cli.seed(
        (EVIL, {"text": EVIL}), error=EVIL, subscription_id=EVIL, headers={EVIL: EVIL}, event_id=EVIL
    )
    for ran in (cli("list", "-o", output, COLUMNS="500"), cli("show", letter_id, "-o", output)):
        assert ran.status == 0
        assert not [c for c in ran.out if not c.isprintable() and c != "\n"]
        assert "[bold]not markup[/bold]" in ran.out


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of this kind are POSIX")
def test_on_a_terminal_the_default_is_a_table_in_colour_and_no_color_is_heeded(cli: Cli) -> None:
    [letter_id] = cli.seed(("a", {}))
    status, screen, _ = cli.on_terminal("list")
    assert status == 0 and letter_id in screen and "\x1b[1m" in screen
    _, screen, _ = cli.on_terminal("show", letter_id, NO_COLOR="1")
    assert "\x1b[3" not in screen


def test_a_terminal_gets_no_raw_payload_that_it_would_obey(cli: Cli) -> None:
    [letter_id] = cli.do(lambda queue: queue.add_many([b"\x1b[2J"]))
    status, screen, _ = cli.on_terminal("show", letter_id, "--payload")
    assert status == 4 and "\x1b[2J" not in screen


def test_stats_count_letters_and_totals(cli: Cli) -> None:
    cli.seed(("a", {}), ("b", {}), delay=0)
    record = cli("stats").record
    assert (record["queue"], record["shards"], record["open"], record["waiting"]) == ("default", 2, 2, 2)
    assert record["totals"]["captured"] == 2
    assert "captured" in cli("stats", "-o", "table").out


@pytest.mark.usefixtures("interruptible")
def test_stats_watch_goes_on_until_it_is_told_to_stop(cli: Cli) -> None:
    process = cli.spawn("stats", "--watch", "--every", "0.1")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(2)
    _, errors = process.communicate(timeout=20)
    assert all('"open":0' in line for line in lines)
    assert (process.returncode, errors) == (130, "uno: error: interrupted\n")


def test_stats_show_what_waits_on_this_machine(cli: Cli, tmp_path: Path) -> None:
    """With a spool alone; also while Redis is away, beside the line that says so, and with its exit status."""
    spool = {"DLQ_SPOOL_DIR": str(tmp_path)}
    assert cli("stats").record["spool"] is None
    assert "spooled" not in cli("stats", "-o", "table").out
    assert cli("stats", **spool).record["spool"]["letters"] == 0
    away = {"DLQ_REDIS_URL": "unix:///nowhere.sock", "DLQ_OPERATION_TIMEOUT": "0.2"}
    config = DeadLetterConfig(spool_dir=str(tmp_path), operation_timeout=0.2)
    with DeadLetterQueue(away["DLQ_REDIS_URL"], config) as queue:
        queue.add({"n": 1})
        queue.add({"n": 2})
    ran = cli("stats", **spool, **away)
    assert ran.status == 5
    assert (ran.record["queue"], ran.record["spool"]["letters"]) == ("default", 2)
    assert ran.record["spool"]["oldest_at"] is not None
    assert 0 < ran.record["spool"]["bytes"] < ran.record["spool"]["max_bytes"]
    assert "Redis is unavailable" in ran.err
    assert "\n" not in ran.err.strip()
    ran = cli("stats", "-o", "table", **spool, **away)
    assert ran.status == 5
    assert "spooled here" in ran.out
    ran = cli("stats", **away)
    assert (ran.status, ran.out) == (5, "")
    assert cli("stats", **spool).record["spool"]["letters"] == 2, "who only looks sends nothing"
    assert "spooled here" in cli("stats", "-o", "table", **spool).out
