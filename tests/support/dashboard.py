"""The Grafana dashboard as tests read it: its panels, their queries, and these as Prometheus would get them."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.support.promtool import CHECKOUT

__all__ = ["Asked", "asked", "dashboard", "panels", "substituted"]

PATH = CHECKOUT / "deploy" / "grafana" / "dlq-dashboard.json"


class Asked(NamedTuple):
    """One query of a panel."""

    panel: str
    expr: str


def dashboard() -> Any:
    """Return the dashboard."""
    return json.loads(PATH.read_text("utf-8"))


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something, in order; rows are none."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def asked() -> Iterator[Asked]:
    """Every query of every panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield Asked(panel["title"], target["expr"])


def substituted(expr: str, *, window: str = "5m") -> str:
    """Return the query with Grafana's variables replaced: every queue, shard and type, over this window."""
    expr = re.sub(r"\$__(?:rate_interval|range)\b", window, expr)
    expr = re.sub(r"\$(?:queue|shard|type)\b", ".*", expr)
    assert "$" not in expr, f"an unknown variable: {expr}"
    return expr
