"""`retry`, `discard`, `clear` and `replay`: what operators do, and what keeps them from the wrong thing."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import APP, Cli
from tests.support.servers import Server


@pytest.fixture
def cli(redis_url: str) -> Cli:
    cli = Cli(redis_url)
    cli.seed()  # an empty queue
    return cli


def states(cli: Cli) -> dict[str, str]:
    return {record["id"]: record["state"] for record in cli("list").records}


def park(cli: Cli, *ids: str) -> None:
    async def all_of_them(queue: Any) -> None:
        for letter_id in ids:
            await queue.park(letter_id, "test")

    cli.do(all_of_them)


def test_retry_by_id_answers_for_each(cli: Cli) -> None:
    first, second = cli.seed(("a", {}), ("b", {}))
    park(cli, first)
    ran = cli("retry", first, "0-1-1", second)
    assert ran.status == 3
    assert {answer["id"]: answer["outcome"] for answer in ran.records} == {
        first: "retried",
        "0-1-1": "letter_not_found",
        second: "retried",
    }
    assert states(cli)[first] == "scheduled"
    assert cli("retry", first, "-o", "table").out == f"{first}  retried\n"


def test_retry_by_filter_sends_back_what_is_not_on_its_way(cli: Cli) -> None:
    first, second = cli.seed(("a", {}), ("b", {}))
    assert cli("retry", "--all", "--yes").record["retried"] == 0, "those that wait are on their way"
    park(cli, first, second)
    assert cli("retry", "--all", "--dry-run").record == {"dry_run": True, "matched": 2}
    assert set(states(cli).values()) == {"parked"}
    assert cli("retry", "--type", "a", "--yes").record == {
        "retried": 1,
        "gone": 0,
        "changed": 0,
        "refused": 0,
    }
    assert states(cli) == {first: "scheduled", second: "parked"}


def test_retry_by_filter_takes_waiting_letters_when_they_are_named(cli: Cli) -> None:
    ids = cli.seed(("a", {}), ("b", {}))
    assert cli("retry", "--state", "waiting", "--type", "b", "--dry-run").record["matched"] == 1
    assert cli("retry", "--state", "waiting", "--type", "b", "--yes").record["retried"] == 1
    [letter] = [record for record in cli("list").records if record["id"] == ids[1]]
    assert letter["state"] == "scheduled" and letter["due_at"] <= cli("stats").record["at"]


def test_retry_refuses_a_letter_that_a_worker_has(cli: Cli) -> None:
    [letter_id] = cli.seed(("a", {}), delay=0)

    async def lease(queue: Any) -> None:
        [shard] = [each for each in (await queue._store()).shards if letter_id.startswith(f"{each.index}-")]
        assert (await shard.take("somebody", 1)).letters

    cli.do(lease)
    ran = cli("retry", letter_id)
    assert ran.status == 4 and ran.records[0]["outcome"] == "letter_state_conflict"
    assert "is leased" in ran.records[0]["message"]
    ran = cli("retry", "--state", "leased", "--yes")
    assert ran.status == 4 and ran.record == {"retried": 0, "gone": 0, "changed": 0, "refused": 1}
    assert cli("retry", "--all", "--yes").status == 0
    assert cli("discard", letter_id, "--why", "test").status == 0, "that takes it away from the worker"


def test_retry_takes_ids_or_filters_but_one_of_them(cli: Cli) -> None:
    assert cli("retry").status == 2
    assert cli("retry", "0-1-1", "--all").status == 2


def test_ids_come_from_stdin_too(cli: Cli) -> None:
    ids = cli.seed(("a", {}), ("b", {}))
    ran = cli("discard", "-", "--why", "test", "--yes", input="\n".join(ids))
    assert ran.status == 0 and len(ran.records) == 2
    assert states(cli) == {}


def test_discard_of_one_named_letter_does_not_ask(cli: Cli) -> None:
    [letter_id] = cli.seed(("a", {}))
    assert cli("discard", letter_id).status == 2, "--why is missing"
    assert cli("discard", letter_id, "--why", "test", "--dry-run").records[0]["outcome"] == "would be discarded"
    assert states(cli) == {letter_id: "waiting"}
    assert cli("discard", letter_id, "--why", "test").status == 0
    assert cli("discard", letter_id, "--why", "test").status == 3
    assert cli("stats").record["totals"]["discarded"] == 1


@pytest.mark.parametrize("words", [("clear",), ("retry", "--all")])
def test_without_a_terminal_a_bulk_verb_needs_yes(cli: Cli, words: tuple[str, ...]) -> None:
    ids = cli.seed(("a", {}), ("b", {}))
    park(cli, *ids)
    ran = cli(*words)
    assert ran.status == 2
    assert "--yes" in ran.err and "--dry-run" in ran.err
    assert set(states(cli).values()) == {"parked"}


def test_clear_discards_what_matches_and_no_more(cli: Cli) -> None:
    _, kept = cli.seed(("a", {}), ("b", {}))
    assert cli("clear", "--type", "a", "--yes").record == {
        "discarded": 1,
        "gone": 0,
        "changed": 0,
        "refused": 0,
    }
    assert list(states(cli)) == [kept]
    assert cli("clear", "--yes", "-o", "table").out == "1 discarded\n"
    assert cli("clear", "--yes", "-o", "table").out == "0 discarded\n"
    assert cli("verify").record["clean"]


def test_clear_of_many_letters_ends_with_clean_books(cli: Cli) -> None:
    cli.do(lambda queue: queue.add_many([{"n": n} for n in range(500)]))
    assert cli("clear", "--yes").record["discarded"] == 500
    assert cli("verify").record["discarded"] == 500


def test_clear_of_waiting_letters_reaches_all_that_waited(cli: Cli) -> None:
    cli.do(lambda queue: queue.add_many([{"n": n} for n in range(1500)]))
    assert cli("clear", "--state", "waiting", "--dry-run").record["matched"] == 1500
    assert cli("clear", "--state", "waiting", "--yes").record["discarded"] == 1500
    assert states(cli) == {}


def test_ids_of_many_letters_go_in_batches(cli: Cli, server: Server) -> None:
    ids = cli.do(lambda queue: queue.add_many([{"n": n} for n in range(1500)]))
    before = server.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    ran = cli("discard", "-", "--why", "test", "--yes", input="\n".join(ids))
    assert {answer["id"]: answer["outcome"] for answer in ran.records} == dict.fromkeys(ids, "discarded")
    assert server.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 100


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(cli: Cli) -> None:
    ids = cli.do(lambda queue: queue.add_many([{"n": n} for n in range(3)]))
    for words in (("retry", *ids), ("clear", "--dry-run"), ("clear", "--yes")):
        assert cli(*words, "--dry-run").err == ""
        status, screen, out = cli.on_terminal(*words, stdout_elsewhere=True)
        assert status == 0 and "3 letters" in screen and "\x1b" not in out
    cli.seed(("a", {}))
    _, screen, _ = cli.on_terminal("discard", *ids[:1], "--why", "test")
    assert "%" not in screen, "answers that are printed there take its place"


def test_on_a_terminal_clear_wants_the_name_of_the_queue(cli: Cli) -> None:
    cli.seed(("a", {}))
    status, screen, _ = cli.on_terminal("clear", typed="yes\n")
    assert status == 4 and "Clear 1 letters of queue default?" in screen and "nothing was changed" in screen
    status, screen, _ = cli.on_terminal("clear", typed="default\n")
    assert status == 0 and "1 discarded" in screen


# --- replay ----------------------------------------------------------------------------------------------


@pytest.fixture
def app(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of its own for each test: importing is once a process."""
    name = f"shop_{os.urandom(4).hex()}"
    (tmp_path / f"{name}.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    for variable, value in cli.settings.items():
        monkeypatch.setenv(variable, value)
    return f"{name}:queue"


def test_replay_runs_letters_that_are_not_due_with_the_handlers_of_the_app(cli: Cli, app: str) -> None:
    cli.seed(("good", {"n": 1}), ("good", {"n": 2}))
    assert cli("replay", "--app", app, "--dry-run").record == {"dry_run": True, "matched": 2}
    ran = cli("replay", "--app", app, "--yes")
    assert ran.status == 0
    assert ran.record == {"dry_run": False, "matched": 2, "success": 2, "failed": 0, "skipped": 0}
    assert states(cli) == {}


def test_replay_exits_1_when_a_letter_fails_again(cli: Cli, app: str) -> None:
    [letter_id] = cli.seed(("bad", {}))
    ran = cli("replay", "--app", app.replace(":queue", ":make"), "--yes", "-o", "table")
    assert (ran.status, ran.out) == (1, "0 succeeded, 1 failed\n")
    assert cli("show", letter_id).record["history"][0]["message"] == "still broken"
    assert "ValueError: still broken" in cli("list", "-o", "table", COLUMNS="140").out


def test_replay_takes_parked_letters_only_when_told(cli: Cli, app: str) -> None:
    park(cli, *cli.seed(("good", {})))
    assert cli("replay", "--app", app, "--yes").record["matched"] == 0
    assert cli("replay", "--app", app, "--yes", "--state", "parked").record["success"] == 1


def test_a_replay_shows_a_bar_on_a_terminal_and_nowhere_else(cli: Cli, app: str, tmp_path: Path) -> None:
    cli.seed(("good", {"n": 1}), ("good", {"n": 2}))
    for words in (("--dry-run",), ("--yes",)):
        assert cli("replay", "--app", app, "--dry-run").err == ""
        status, screen, out = cli.on_terminal(
            "replay", "--app", app, *words, stdout_elsewhere=True, PYTHONPATH=str(tmp_path)
        )
        assert status == 0 and "2 letters" in screen and "\x1b" not in out


def test_replay_without_a_terminal_needs_yes(cli: Cli, app: str) -> None:
    [letter_id] = cli.seed(("good", {}))
    assert cli("replay", "--app", app).status == 2
    assert states(cli) == {letter_id: "waiting"}
