"""A worker's port: metrics and probes of a real process, asked over HTTP and by `health`."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli import Cli, wait_for_line
from tests.support.probes import get, get_until
from tests.support.servers import Server
from tests.support.waiting import eventually
from uno.event_bus.dead_letter.telemetry.ration import WINDOW_S

APP = """
import logging
import time
from uno.event_bus.dead_letter import DeadLetterQueue, Park

queue = DeadLetterQueue.from_env()

@queue.handler("good")
async def good(event):
    logging.getLogger("shop").info("sold")

@queue.handler("good in a thread")
def good_in_a_thread(event):
    logging.getLogger("shop").info("sold in a thread")

@queue.handler("block")
async def block(event):
    time.sleep(event["s"])

@queue.handler("bad")
async def bad(event):
    raise ValueError(event["secret"])

@queue.handler("hopeless")
async def hopeless(event):
    raise Park(event["secret"])
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


class Process:
    """A worker, and where it serves its pages."""

    def __init__(self, cli: Cli, shop: Path, *words: str, **settings: str) -> None:
        settings = {"DLQ_METRICS_PORT": "0"} | settings
        self.process = cli.spawn("worker", "--app", "shop:queue", *words, cwd=shop, **settings)
        self.seen = wait_for_line(self.process, "metrics at")
        found = re.search(r"metrics at (http://\S+)/metrics", self.seen)
        assert found is not None
        self.url = found[1]

    def ready(self) -> None:
        get_until(self.url, "/readyz", 200)

    def stop(self) -> str:
        """Stop it in order; return all that it wrote on stderr."""
        self.process.send_signal(signal.SIGTERM)
        out, errors = self.process.communicate(timeout=20)
        assert self.process.returncode == 0 and out == ""
        return self.seen + errors


@contextmanager
def working(cli: Cli, shop: Path, *words: str, **settings: str) -> Iterator[Process]:
    worker = Process(cli, shop, *words, **settings)
    try:
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.communicate()


def test_a_worker_serves_metrics_and_probes_and_health_asks_them(cli: Cli, shop: Path) -> None:
    cli.seed(("good", {}), ("bad", {"secret": "x"}), delay=0)
    with working(cli, shop, "--metrics-port", "0") as worker:
        worker.ready()
        page = get(worker.url, "/metrics", headers={"accept": "application/openmetrics-text"})
        assert page.headers["content-type"].startswith("application/openmetrics-text")
        assert b"dlq_processing_seconds_bucket" in page.body and page.body.endswith(b"# EOF\n")
        told = get(worker.url, "/readyz").record
        assert told["ok"] and told["queue"] == "default" and told["served"] == [0, 1]
        assert told["pid"] == worker.process.pid and told["worker"].count(f"-{worker.process.pid}-")
        ran = cli("health", "--url", worker.url)
        assert ran.status == 0 and ran.record["served"] == [0, 1]
        ran = cli("health", "--port", worker.url.rpartition(":")[2], "--live", "-o", "table")
        assert ran.status == 0 and ran.out.startswith("ok\n")
        worker.stop()


def test_a_handler_that_blocks_the_loop_fails_livez_while_metrics_answer(cli: Cli, shop: Path) -> None:
    """For longer than a lease; health then exits 1. It ends with the process."""
    with working(cli, shop, DLQ_LEASE_SECONDS="0.5") as worker:
        worker.ready()
        cli.seed(("block", {"s": 600}), delay=0)
        told = get_until(worker.url, "/livez", 503).record
        assert not told["ok"] and re.match(r"the event loop has been blocked for [1-9]", told["why"])
        ran = cli("health", "--url", worker.url, "--live")
        assert ran.status == 1 and "blocked" in ran.record["why"]
        assert get(worker.url, "/metrics").status == 200
        assert get(worker.url, "/readyz").status == 503
        worker.process.kill()


def test_readyz_follows_redis_and_livez_does_not(shop: Path, server: Server) -> None:
    """Away at the start, away later; back each time."""
    with Server(server.name, "--appendonly", "yes") as own:
        own.stop()
        cli = Cli(own.url)
        with working(cli, shop, DLQ_OPERATION_TIMEOUT="0.3") as worker:
            wait_for_line(worker.process, "waiting for Redis")
            assert "waiting for Redis: " in get(worker.url, "/readyz").record["why"]
            assert get(worker.url, "/readyz").status == 503
            assert get(worker.url, "/livez").status == 200
            assert get(worker.url, "/metrics").status == 200
            own.start()
            worker.ready()
            own.stop()
            told = get_until(worker.url, "/readyz", 503).record
            assert told["why"].startswith("no answer from shard") and get(worker.url, "/livez").status == 200
            assert cli("health", "--url", worker.url).status == 1
            own.start()
            worker.ready()
            worker.stop()


def test_health_exits_5_when_no_worker_answers_and_1_when_somebody_else_does(cli: Cli) -> None:
    with socket.socket() as taken:  # nobody listens there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        ran = cli("health", "--port", port)
        assert ran.status == 5 and f"nobody answers at http://127.0.0.1:{port}: Connection refused" in ran.err
        assert ran.err.count("\n") == 1
        ran = cli("health", "--url", "http://u:s3cret@127.0.0.1:" + port)
        assert ran.status == 5 and "s3cret" not in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("--url", "nowhere"),
        ("--url", "redis://localhost"),
        ("--url", "http://localhost:port"),
        ("--url", "http://localhost", "--port", "1"),
        ("--live",),
    ],
)
def test_health_of_what_is_no_worker_exits_2_with_one_line(cli: Cli, words: tuple[str, ...]) -> None:
    ran = cli("health", *words)
    assert ran.status == 2 and ran.err.count("\n") == 1


def test_a_port_that_is_in_use_exits_2_with_one_line_that_names_it(cli: Cli, shop: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = cli.spawn("worker", "--app", "shop:queue", "--metrics-port", str(port), cwd=shop)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2 and errors.count("\n") == 1
    assert f"metrics cannot be served at 127.0.0.1:{port}: Address already in use" in errors


def test_log_lines_are_json_with_ids_and_say_no_secret(cli: Cli, shop: Path) -> None:
    """Neither of the URL, nor of an event, a header or an error of a handler; not even at debug."""
    [letter_id] = cli.seed(("hopeless", {"secret": "hunter2"}), delay=0, headers={"authorization": "hunter2"})
    cli.seed(("bad", {"secret": "hunter2"}), delay=0, headers={"authorization": "hunter2"})
    url = cli.url.replace("unix://", "unix://default:hunter2@") if cli.url.startswith("unix://") else cli.url
    with working(cli, shop, DLQ_LOG_LEVEL="debug", DLQ_REDIS_URL=url) as worker:
        lines: list[str] = []
        while not lines or "is parked" not in lines[-1]:
            lines.append(wait_for_line(worker.process, "{"))
        text = "".join(lines) + worker.stop()
    assert "hunter2" not in text
    parked = json.loads(lines[-1])
    assert parked["letter_id"] == letter_id and parked["queue"] == "default" and parked["level"] == "info"
    assert parked["shard"] == int(letter_id.partition("-")[0]) and parked["attempt"] == 1
    assert parked["event_type"] == "hopeless" and str(worker.process.pid) in parked["worker"]
    for line in text.splitlines():
        assert {"ts", "level", "logger", "message"} <= json.loads(line).keys()


def test_lines_that_handlers_log_name_their_letter(cli: Cli, shop: Path) -> None:
    """On the loop as in a thread."""
    ids = cli.seed(("good", {}), ("good in a thread", {}), delay=0)
    with working(cli, shop) as worker:
        lines = [wait_for_line(worker.process, '"shop"') for _ in ids]
        worker.stop()
    told = {line["event_type"]: line for line in map(json.loads, lines)}
    assert [told[type]["letter_id"] for type in ("good", "good in a thread")] == ids
    assert all((line["queue"], line["attempt"]) == ("default", 1) for line in told.values())


def test_a_flood_of_parked_letters_is_a_few_lines(cli: Cli, shop: Path) -> None:
    """And the end says how many there were."""
    cli.seed(*[("hopeless", {"secret": "x"})] * 300, delay=0)
    began = time.monotonic()
    with working(cli, shop, DLQ_LOG_FORMAT="plain") as worker:
        cli.do(_until_parked(300))
        took_s = time.monotonic() - began
        text = worker.stop()
    assert 5 <= text.count("is parked") <= 5 * (1 + took_s / WINDOW_S) and "parked 300" in text
    assert "Z INFO    uno." in text


def _until_parked(letters: int):
    async def wait(queue):
        async def parked() -> bool:
            return (await queue.stats()).parked == letters

        await eventually(parked)

    return wait
