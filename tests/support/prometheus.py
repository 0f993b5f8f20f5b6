"""A real Prometheus on loopback: its data in a folder of the test, ended with the test process."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from ruamel.yaml import YAML

from tests.support.promtool import RULES, program, read_yaml
from uno.event_bus.dead_letter.store.local_node import free_port

__all__ = ["Prometheus", "Sample", "comes_to", "get", "until"]

INTERVAL = "500ms"
"""Between two scrapes of a target, and two evaluations of the rules."""

FOR = "6s"
"""What the test has rules wait before an alert fires: long enough that it is seen pending."""

WITHIN_S = 45.0
"""A bound for what takes a few intervals."""

SCRAPES_S = 20.0

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before the loopback


class Sample(NamedTuple):
    """One series of an answer, and its value."""

    labels: Mapping[str, str]
    value: float


def until[T](check: Callable[[], T], *, within_s: float = WITHIN_S, what: str) -> T:
    """Return the first truthy answer; fail when none came in time."""
    deadline = time.monotonic() + within_s
    while not (answer := check()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s, last {answer!r}"
        time.sleep(0.05)
    return answer


def comes_to(ask: Callable[[], object], expected: object) -> None:
    """Assert that the answer is this, at the latest after a few scrapes: one may have been late on a busy machine."""
    deadline = time.monotonic() + SCRAPES_S
    while (answer := ask()) != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer == expected


def get(url: str, **headers: str) -> str:
    """Return what is at a URL."""
    with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        text: str = answer.read().decode()
        return text


class Prometheus:
    """Scrapes these targets, ``host:port``, and evaluates the rules that we ship, which wait `FOR` alone."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._program = program("prometheus")
        self._folder = folder
        self._targets = list(targets)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Self:
        self._write("dlq.rules.yml", _hurried())
        self._write(
            "prometheus.yml",
            {
                "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
                "rule_files": ["dlq.rules.yml"],
                "scrape_configs": [{"job_name": "dlq", "static_configs": [{"targets": self._targets}]}],
            },
        )
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", self._program, "--config.file=prometheus.yml"),
                    *("--storage.tsdb.path=data", "--enable-feature=exemplar-storage"),
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, what="Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def _write(self, name: str, document: Any) -> None:
        with (self._folder / name).open("w") as out:
            YAML().dump(document, out)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            return "is Ready" in get(f"{self.url}/-/ready")
        except OSError:
            return False

    def _api(self, what: str, **arguments: Any) -> Any:
        return json.loads(get(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"))["data"]

    def query(self, expr: str) -> list[Sample]:
        """Return what an expression gives now."""
        result = self._api("query", query=expr)["result"]
        return [Sample(each["metric"], float(each["value"][1])) for each in result]

    def value(self, expr: str) -> float | None:
        """Return the one value of an expression; None if there is none."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return found[0].value if found else None

    def by(self, label: str, expr: str) -> dict[str, float]:
        """Return the values of an expression by one of their labels."""
        return {labels[label]: value for labels, value in self.query(expr)}

    def state_of(self, alert: str) -> str:
        """Return ``pending`` or ``firing``; empty when the alert is neither."""
        states = {each["state"] for each in self._api("alerts")["alerts"] if each["labels"]["alertname"] == alert}
        return "firing" if "firing" in states else "".join(states)

    def exemplars(self, expr: str) -> list[dict[str, str]]:
        """Return the labels of the exemplars of the expression's series within the last ten minutes."""
        now = time.time()
        series = self._api("query_exemplars", query=expr, start=now - 600, end=now + 1)
        return [exemplar["labels"] for each in series for exemplar in each["exemplars"]]


def _hurried() -> Any:
    document = read_yaml(RULES)
    for group in document["groups"]:
        for rule in group["rules"]:
            if re.fullmatch(r"\d+m", rule.get("for", "")):
                rule["for"] = FOR
    return document
