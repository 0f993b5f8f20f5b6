"""A real Prometheus scrapes two real workers: what it knows of a load is what became of its letters, to the letter.

`make prometheus` runs it: about a minute.
"""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support import binaries
from tests.support.dashboard import asked, substituted
from tests.support.monitored_app import ATTEMPTS, PLAN
from tests.support.prometheus import Prometheus, comes_to, get, until
from tests.support.promtool import CHECKOUT, promtool, read_yaml
from tests.support.servers import Server
from uno.event_bus.dead_letter import DeadLetterConfig, DeadLetterQueue
from uno.event_bus.dead_letter.telemetry.names import TABLE, attempt_label

pytestmark = [pytest.mark.xdist_group("prometheus"), pytest.mark.timeout(120)]

SHARDS = 2
BACKLOG = 1_100

# ------------------------------------------------------------------------------------ the ledger, by the plan

LETTERS = Counter({type: planned.letters for type, planned in PLAN.items()})
LETTERS["order.paid"] += PLAN["order.chained"].letters

ENDS: Counter[str] = Counter()
RUNS: Counter[tuple[str, int]] = Counter()
CAUSES: Counter[str] = Counter()
for _type, _letters in LETTERS.items():
    ENDS[PLAN[_type].end] += _letters
    for _attempt, _cause in enumerate(PLAN[_type].causes, 1):
        RUNS[_type, _attempt] += _letters
        CAUSES[_cause] += _letters
ENDS["retry"] = RUNS.total() - LETTERS.total()


@dataclass
class Scene:
    """What is there after the load has been worked off, and scraped."""

    server: Server
    prometheus: Prometheus
    workers: list[str]
    """``host:port`` of each."""
    folder: Path

    def do(self, act: Callable[[DeadLetterQueue], Awaitable[Any]]) -> Any:
        """Do something with the queue."""

        async def done() -> Any:
            async with DeadLetterQueue(self.server.url, DeadLetterConfig(shards=SHARDS)) as queue:
                return await act(queue)

        return anyio.run(done)

    def lines(self, kind: str) -> list[str]:
        """What the workers wrote."""
        return [line for file in self.folder.glob(f"*.{kind}") for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        server = stack.enter_context(Server(binaries.EMBEDDED))
        workers = [stack.enter_context(_worker(server.url, folder, name)) for name in ("a", "b")]
        prometheus = stack.enter_context(Prometheus(folder, workers))
        scene = Scene(server, prometheus, workers, folder)
        # Both are seen before anything happens: what has no beginning has no increase.
        until(lambda: prometheus.value("count(dlq_captured_total == 0)") == 2, what="two workers are scraped")
        scene.do(_load)
        until(lambda: scene.do(_is_done), what="all letters have come to their end")
        until(lambda: prometheus.value("min(dlq_resolved_total)") == ENDS["resolve"], what="both have told the end")
        until(lambda: prometheus.value("sum(dlq_retry_count_total)") == RUNS.total(), what="and all attempts")
        yield scene


@contextmanager
def _worker(url: str, folder: Path, name: str) -> Iterator[str]:
    """A worker; gives where its metrics are. Its log is a file: a pipe that nobody reads would hold it up."""
    settings = {
        "DLQ_REDIS_URL": url,
        "DLQ_SHARDS": str(SHARDS),
        "DLQ_RETRY_DELAY": "0",
        "DLQ_MAX_RETRIES": str(ATTEMPTS),
        "DLQ_SPOOL_DIR": str(folder / f"spool-{name}"),
        "MONITORED_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join((str(CHECKOUT / "src"), str(CHECKOUT))),
    }
    command = [sys.executable, "-m", "uno.cli.main", "dead-letter", "worker", "--metrics-port", "0"]
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--app", "tests.support.monitored_app:make"],
            cwd=CHECKOUT,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stderr=out,
        )

    def port() -> str:
        assert process.poll() is None, log.read_text()
        said = re.search(r"http://(127\.0\.0\.1:\d+)/metrics", log.read_text())
        return said[1] if said else ""

    try:
        yield until(port, what="the worker says where its metrics are")
    finally:
        process.terminate()
        process.wait(30)


async def _load(queue: DeadLetterQueue) -> None:
    for type, planned in PLAN.items():
        events = [{"n": n} for n in range(planned.letters)]
        await queue.add_many(events, type=type, error=ConnectionError(f"{type}: the shop is away"), delay=0)


async def _is_done(queue: DeadLetterQueue) -> bool:
    stats = await queue.stats()
    return stats.totals["captured"] == LETTERS.total() and stats.open == stats.parked == ENDS["park"]


# ------------------------------------------------------------------------------------ counters and gauges


def test_handlers_ran_as_planned(scene: Scene) -> None:
    assert Counter(scene.lines("runs")) == Counter(
        {f"{type} {attempt}": runs for (type, attempt), runs in RUNS.items() if type != "order.strict"}
    )


def test_totals_of_the_queue_are_the_ledgers(scene: Scene) -> None:
    expected = {
        "captured": LETTERS.total(),
        "resolved": ENDS["resolve"],
        "retried": ENDS["retry"],
        "parked": ENDS["park"],
        "discarded": ENDS["discard"],
        **dict.fromkeys(("expired", "crashed", "orphaned", "lost_externally", "redriven", "repeated"), 0),
    }
    for name, total in expected.items():
        shown = partial(scene.prometheus.by, "instance", f"dlq_{name}_total")
        comes_to(shown, dict.fromkeys(scene.workers, total))
    told = scene.do(lambda queue: queue.stats()).totals
    known = expected.keys() & told.keys()
    assert known >= {"captured", "resolved", "discarded", "expired"}
    assert {name: told[name] for name in known} == {name: expected[name] for name in known}


def test_attempts_are_the_ledgers_by_their_number(scene: Scene) -> None:
    prometheus = scene.prometheus
    expected: Counter[str] = Counter()
    for (_, attempt), runs in RUNS.items():
        expected[attempt_label(attempt)] += runs
    comes_to(lambda: prometheus.by("attempt", "sum by (attempt) (dlq_retry_count_total)"), expected)
    comes_to(lambda: prometheus.by("attempt", "sum by (attempt) (dlq_retry_count)"), expected)
    comes_to(lambda: prometheus.value("sum(dlq_processing_seconds_count)"), RUNS.total())


def test_errors_are_the_ledgers_by_their_cause(scene: Scene) -> None:
    prometheus = scene.prometheus
    expected = {cause: CAUSES[cause] for cause in ("handler", "timeout", "invalid", "lease", "store")}
    comes_to(lambda: prometheus.by("cause", "sum by (cause) (dlq_dlq_errors_total)"), expected)
    comes_to(lambda: prometheus.by("cause", "sum by (cause) (dlq_dlq_errors)"), expected)
    of_handlers = CAUSES["handler"] + CAUSES["timeout"]
    comes_to(lambda: prometheus.value("sum(dlq_processing_errors_total)"), of_handlers)


def test_outcomes_are_the_ledgers_by_type(scene: Scene) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    for type, letters in LETTERS.items():
        expected[type, PLAN[type].end] += letters
        expected[type, "retry"] += letters * (len(PLAN[type].causes) - 1)

    def shown() -> dict[tuple[str, str], float]:
        rows = scene.prometheus.query('sum by (type, outcome) (dlq_outcomes_total{outcome!="release"})')
        return {(labels["type"], labels["outcome"]): value for labels, value in rows}

    comes_to(shown, +expected)


def test_captures_are_counted_where_they_were_made(scene: Scene) -> None:
    shown = partial(scene.prometheus.by, "type", "sum by (type) (dlq_captures_total)")
    comes_to(shown, {"order.paid": PLAN["order.chained"].letters})


def test_gauges_come_to_rest(scene: Scene) -> None:
    prometheus, workers = scene.prometheus, scene.workers
    states = dict.fromkeys(("waiting", "leased", "scheduled", "suspect", "held"), 0) | {"parked": ENDS["park"]}
    comes_to(lambda: prometheus.by("state", "max by (state) (dlq_letters)"), states)
    comes_to(lambda: prometheus.by("queue", "max by (queue) (dlq_queue_size)"), {"default": ENDS["park"]})
    comes_to(lambda: prometheus.value("sum(max by (shard) (dlq_shard_size))"), ENDS["park"])
    comes_to(lambda: prometheus.by("shard", "max by (shard) (dlq_shard_up)"), {"0": 1, "1": 1})
    comes_to(lambda: prometheus.by("shard", "min by (shard) (dlq_shard_workers)"), {"0": 1, "1": 1})
    comes_to(lambda: prometheus.by("instance", "dlq_workers"), dict.fromkeys(workers, 2))
    comes_to(lambda: prometheus.by("instance", "dlq_handlers_running"), dict.fromkeys(workers, 0))
    comes_to(lambda: prometheus.by("instance", "dlq_handlers_limit"), dict.fromkeys(workers, 10))
    for name in ("dlq_oldest_due_age_seconds", "dlq_spool_letters", "dlq_evicting_servers"):
        comes_to(partial(prometheus.by, "instance", name), dict.fromkeys(workers, 0))
    comes_to(lambda: prometheus.value("max(dlq_oldest_letter_age_seconds) < bool 120"), 1)


# ------------------------------------------------------------------------------------ the page, the dashboard, traces


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_the_page_has_every_metric_and_no_other(scene: Scene, accept: str) -> None:
    page = get(f"http://{scene.workers[0]}/metrics", Accept=accept)
    families = re.findall(r"^# TYPE (dlq_\w+) ", page, re.MULTILINE)
    open_metrics = "openmetrics" in accept
    assert sorted(families) == sorted(metric.name if open_metrics else metric.sample for metric in TABLE.values())


def test_promtool_has_nothing_against_the_page(scene: Scene) -> None:
    run = promtool("check", "metrics", input=get(f"http://{scene.workers[0]}/metrics", Accept="text/plain"))
    assert run.returncode == 0 and run.stdout + run.stderr == ""


def test_every_query_of_the_dashboard_gets_data(scene: Scene) -> None:
    def empty() -> list[str]:
        return [
            f"{query.panel}: {query.expr}"
            for query in asked()
            if not any(math.isfinite(value) for _, value in scene.prometheus.query(substituted(query.expr)))
        ]

    comes_to(empty, [])


def test_keda_sees_the_letters_that_workers_can_work_on(scene: Scene) -> None:
    file = read_yaml(CHECKOUT / "deploy" / "keda" / "scaledobject.yaml")
    comes_to(lambda: scene.prometheus.value(file["spec"]["triggers"][0]["metadata"]["query"]), 0)


def test_exemplars_lead_to_recorded_traces(scene: Scene) -> None:
    spans = {tuple(line.split(" ", 2)[:2]): line.split(" ", 2)[2] for line in scene.lines("spans")}
    of_attempts = scene.prometheus.exemplars("dlq_processing_seconds_bucket")
    assert of_attempts, "no exemplar at all"
    assert {spans[exemplar["trace_id"], exemplar["span_id"]].split(" ", 1)[1] for exemplar in of_attempts} == {
        "process default"
    }
    of_errors = scene.prometheus.exemplars("dlq_dlq_errors_total")
    assert {spans[exemplar["trace_id"], exemplar["span_id"]] for exemplar in of_errors} == {"ERROR process default"}


# ------------------------------------------------------------------------------------ alerts


def test_a_backlog_is_pending_then_firing_then_over(scene: Scene) -> None:
    prometheus = scene.prometheus
    state = partial(prometheus.state_of, "HighDLQBacklog")
    assert state() == ""

    async def pile_up(queue: DeadLetterQueue) -> None:
        await queue.add_many([{}] * BACKLOG, type="order.paid", delay=3600)

    scene.do(pile_up)
    assert until(state, what="the backlog is seen") == "pending"
    until(lambda: state() == "firing", what="the backlog fires")
    comes_to(lambda: prometheus.value("max by (queue) (dlq_queue_size)"), BACKLOG + ENDS["park"])
    file = read_yaml(CHECKOUT / "deploy" / "keda" / "scaledobject.yaml")
    comes_to(lambda: prometheus.value(file["spec"]["triggers"][0]["metadata"]["query"]), BACKLOG)
    # What was parked by the load has been noticed, too; nothing that did not happen was.
    assert prometheus.state_of("DLQParkedGrowing") == "firing"
    assert not any(map(prometheus.state_of, ("DLQShardDown", "DLQServerEvicts", "DLQLettersLost", "DLQNotScraped")))

    scene.do(lambda queue: queue.discard_many({"state": "scheduled"}, "the test is over"))
    until(lambda: state() == "", what="the backlog is over")
