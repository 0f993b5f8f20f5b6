"""Debian's Prometheus and its tool, which reads rules, configs and expressions as the server does.

Where the package `prometheus` is missing, a test that needs it fails if `CI=true`, and is skipped elsewhere.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from uno.event_bus.dead_letter.telemetry.names import TABLE, Metric

__all__ = [
    "CHECKOUT",
    "RECORDED",
    "RULES",
    "check_expressions",
    "metrics_in",
    "program",
    "promtool",
    "read_yaml",
    "wrongly_added",
]

CHECKOUT = Path(__file__).parents[2]
RULES = CHECKOUT / "deploy" / "prometheus" / "dlq.rules.yml"

RECORDED = frozenset({"dlq_retry_count", "dlq_dlq_errors"})
"""Names that rules make, besides those that exporters have."""


def program(name: str) -> str:
    """Return the path of `promtool` or `prometheus`."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is not on this machine (Debian's package prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def promtool(*words: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run promtool with these words."""
    return subprocess.run(
        [program("promtool"), *map(str, words)], capture_output=True, text=True, timeout=50, check=False, **options
    )


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds."""
    return YAML(typ="safe").load(path)


def check_expressions(folder: Path, expressions: Iterable[str]) -> str:
    """Return what promtool says against these expressions; nothing if it understands all of them."""
    file = folder / "expressions.yml"
    rules = [{"record": f"expression:{i}", "expr": expression} for i, expression in enumerate(expressions)]
    assert rules
    with file.open("w") as out:
        YAML().dump({"groups": [{"name": "expressions", "rules": rules}]}, out)
    run = promtool("check", "rules", file)
    return "" if run.returncode == 0 else run.stdout + run.stderr


def metrics_in(expression: str) -> dict[str, Metric]:
    """Return the engine's metrics that an expression names, by the names of their samples; fail on one that is none."""
    samples: dict[str, Metric] = {}
    for metric in TABLE.values():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        samples |= {metric.sample + suffix: metric for suffix in suffixes}
    # What stands in quotes, or before = or ~, is of labels.
    words = re.findall(r"\b[a-zA-Z_]\w*", re.sub(r'"[^"]*"', "", expression))
    names = [word for word in words if word.startswith("dlq_")]
    unknown = sorted(set(names) - samples.keys() - RECORDED)
    assert not unknown, f"no exporter has {unknown}: {expression}"
    return {name: samples[name] for name in names if name in samples}


def wrongly_added(expression: str) -> list[str]:
    """Return the metrics of queue or server in the expression that are not under max, min or group by their labels.

    Every exporter has the same value of them: a sum would count them once for each.
    """
    wrong = []
    for name, metric in metrics_in(expression).items():
        if metric.scope == "process":
            continue
        over_time = r"(?:(?:rate|increase|min_over_time|last_over_time) ?\()?"
        by = re.compile(rf"\b(?:max|min|group) by \((?P<labels>[\w, ]+)\) \({over_time}{name}\b")
        places = len(re.findall(rf"\b{name}\b", expression))
        if len(by.findall(expression)) != places:
            wrong.append(name)
    return wrong
