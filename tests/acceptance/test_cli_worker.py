"""`worker`: finds its handlers, works until it is told to stop, and stops in order."""

import signal
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.cli import APP, Cli, wait_for_line
from tests.support.proxy import Proxy
from tests.support.servers import Server
from uno.cli.dead_letter.app import load_queue

SLOW = """
import anyio
from uno.event_bus.dead_letter import DeadLetterQueue

queue = DeadLetterQueue.from_env()

@queue.handler("slow")
async def slow(event):
    print("begun", flush=True)
    await anyio.sleep(event["s"])
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "broken.py").write_text("import not_there")
    return tmp_path


def test_a_worker_works_and_stops_in_order_at_sigterm(cli: Cli, shop: Path) -> None:
    cli.seed(("good", {}), ("good", {}), ("bad", {}), delay=0)
    process = cli.spawn("worker", "--app", "shop:queue", cwd=shop)
    started = wait_for_line(process, "started")
    assert "queue default, 2 handlers" in started and f"pid {process.pid}" in started
    cli.do(_until_open(1))
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and out == ""
    assert "SIGTERM" in errors and "stopped: resolved 2, retried 1" in errors
    assert cli("verify").status == 0


def test_a_worker_waits_for_redis_also_when_it_goes_away_during_the_start(cli: Cli, shop: Path) -> None:
    cli.seed(("good", {}), delay=0)
    with Proxy(cli.url) as proxy:
        proxy.silence("layout")
        process = cli.spawn(
            "worker", "--app", "shop:queue", cwd=shop, DLQ_REDIS_URL=proxy.url, DLQ_OPERATION_TIMEOUT="0.2"
        )
        wait_for_line(process, "waiting for Redis")
        proxy.heal()
        wait_for_line(process, "Redis is there")
        wait_for_line(process, "started")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_handler_that_runs_may_finish(cli: Cli, shop: Path) -> None:
    cli.seed(("slow", {"s": 0.3}), delay=0)
    process = cli.spawn("worker", "--app", "slow:queue", cwd=shop)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "stopped: resolved 1" in errors


def test_a_second_signal_leaves_at_once(cli: Cli, shop: Path) -> None:
    cli.seed(("slow", {"s": 60}), delay=0)
    process = cli.spawn("worker", "--app", "slow:queue", cwd=shop)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "stopping in order")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and "leaving at once" in errors
    assert cli("list").records[0]["state"] == "leased"


def test_a_worker_waits_for_a_redis_that_comes_later(shop: Path, server: Server) -> None:
    with Server(server.name) as late:
        late.stop()
        process = Cli(late.url).spawn("worker", "--app", "shop:queue", cwd=shop, DLQ_OPERATION_TIMEOUT="0.2")
        assert "waiting for Redis" in wait_for_line(process, "waiting")
        late.start()
        wait_for_line(process, "started")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_worker_that_waits_can_be_stopped(cli: Cli, shop: Path) -> None:
    process = cli.spawn("worker", "--app", "shop:queue", cwd=shop, DLQ_REDIS_URL="redis://127.0.0.1:1")
    wait_for_line(process, "waiting")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["worker", "replay"])
def test_without_handlers_one_line_names_all_three_ways_and_no_letter_is_taken(cli: Cli, command: str) -> None:
    [letter_id] = cli.seed(("good", {}), delay=0)
    ran = cli(command, DLQ_APP="")
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert all(way in ran.err for way in ("--app", "DLQ_APP", "uno.dead_letter"))
    assert [(record["id"], record["state"]) for record in cli("list").records] == [(letter_id, "waiting")]


@pytest.mark.parametrize(
    ("app", "why"),
    [
        ("nowhere_at_all:queue", "cannot import nowhere_at_all: ModuleNotFoundError"),
        ("broken:queue", "cannot import broken: ModuleNotFoundError: No module named 'not_there'"),
        ("shop:nothing", "shop has no 'nothing'"),
        ("shop:seen", "shop:seen is a list; wanted is a DeadLetterQueue"),
        ("shop:bare", "shop:bare has no handlers"),
        ("shop", "DLQ_APP (app) is 'shop': allowed is module:attribute"),
    ],
)
def test_an_app_that_is_none_exits_2_with_one_line(
    cli: Cli, shop: Path, monkeypatch: pytest.MonkeyPatch, app: str, why: str
) -> None:
    monkeypatch.syspath_prepend(shop)
    ran = cli("worker", "--app", app)
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert why in ran.err


def test_handlers_come_from_the_option_then_dlq_app_then_the_one_entry_point(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("by_option", "by_variable", "by_entry"):
        (tmp_path / f"{module}.py").write_text(APP)
    package = tmp_path / "shop-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[uno.dead_letter]\nshop = by_entry:queue\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DLQ_REDIS_URL", cli.url)
    assert load_queue(None) is import_module("by_entry").queue
    monkeypatch.setenv("DLQ_APP", "by_variable:make")
    assert load_queue(None) is import_module("by_variable").queue
    assert load_queue("by_option:queue") is import_module("by_option").queue


def test_several_entry_points_are_a_question_not_a_choice(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shop-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[uno.dead_letter]\na = shop:a\nb = shop:b\n")
    monkeypatch.syspath_prepend(tmp_path)
    ran = cli("worker")
    assert ran.status == 2
    assert "2 entry points have handlers (shop:a, shop:b)" in ran.err and "--app" in ran.err


def test_an_app_with_settings_of_its_own_is_not_overruled(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_settings.py").write_text(
        "from uno.event_bus.dead_letter import DeadLetterQueue, DeadLetterConfig\n"
        "queue = DeadLetterQueue('redis://127.0.0.1:1', DeadLetterConfig(queue='own'))\n"
        "queue.add_handler(print)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DLQ_QUEUE", "default")  # what the command changes is put back
    monkeypatch.setenv("DLQ_REDIS_URL", cli.url)
    ran = cli("worker", "--app", "own_settings:queue", "--queue", "other")
    assert ran.status == 2 and "is queue 'own', --queue is 'other'" in ran.err
    ran = cli("worker", "--app", "own_settings:queue", "--redis-url", cli.url)
    assert ran.status == 2 and "brings its own Redis" in ran.err


def _until_open(letters: int):
    async def wait(queue):
        import anyio

        with anyio.fail_after(20):
            while True:
                stats = await queue.stats()
                if stats.open <= letters and not stats.leased and not stats.waiting:
                    return
                await anyio.sleep(0.02)

    return wait
