"""Write deploy/grafana/dlq-dashboard.json, or with --check say whether it is what this makes.

The panels stand in dashboard_panels.py; Grafana's own words, ids and places are added around them here, so that a
change of one panel is a change of one line.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dashboard_panels import GUIDE, QUEUE, ROWS, Panel, Query

PATH = Path(__file__).parents[1] / "deploy" / "grafana" / "dlq-dashboard.json"

SCHEMA_VERSION = 39
"""Of Grafana 11, the oldest that is looked after; later ones migrate it when they load it."""

COLUMNS, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana exports and imports one."""
    return {
        "uid": "uno-dead-letter",
        "title": "Dead-letter queue",
        "description": "Queues of uno dead-letter. Made by scripts/dashboard.py; rules and runbooks lie beside it.",
        "tags": ["uno", "dead-letter"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _alerts() -> dict[str, Any]:
    """Mark when alerts of these queues began and ended."""
    selector = f'alertname=~"HighDLQBacklog|DLQ.+", alertstate="firing", {QUEUE}'
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": f"max by (alertname, queue) (ALERTS{{{selector}}})",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{queue}}",
        "step": "30s",
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    for name, query in (
        ("queue", "label_values(dlq_queue_size, queue)"),
        ("shard", f"label_values(dlq_shard_size{{{QUEUE}}}, shard)"),
        ("type", f"label_values(dlq_captures_total{{{QUEUE}}}, type)"),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # when the time range changes: queues, shards and types come and go
            "sort": 3 if name == "shard" else 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def _panels() -> Iterator[dict[str, Any]]:
    id, y = 1, 0
    for title, panels in {"": GUIDE, **ROWS}.items():
        if title:
            place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            yield {"id": id, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
            id, y = id + 1, y + 1
        x = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            yield _panel(panel, id, {"h": HEIGHT, "w": panel.width, "x": x, "y": y})
            id, x = id + 1, x + panel.width
        y += HEIGHT


def _panel(panel: Panel, id: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": place,
        "datasource": SOURCE,
        "targets": [_target(query, "ABCDEFGH"[i], panel) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(query: Query, ref: str, panel: Panel) -> dict[str, Any]:
    # What counts over the time shown is one value, not a curve.
    is_instant = "$__range" in query.expr
    return {
        "refId": ref,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": is_instant,
        "range": not is_instant,
        "exemplar": query.exemplars,
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": colour, "value": value} for value, colour in panel.steps)]
    field: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.top is not None:
        field["max"] = panel.top
    if panel.unit == "short" and panel.kind != "timeseries":
        field["decimals"] = 0
    if panel.kind != "timeseries":
        return field
    field["color"] = {"mode": "palette-classic"}
    field["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 20 if panel.stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
    }
    return field


def _options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    legend: dict[str, Any] = {"displayMode": "table", "showLegend": True}
    match panel.kind:
        case "timeseries":
            place = "right" if panel.width > 10 else "bottom"
            return {
                "legend": {**legend, "placement": place, "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "piechart":
            return {
                "reduceOptions": last,
                "orientation": "auto",
                "pieType": "pie",
                "displayLabels": ["percent"],
                "legend": {**legend, "placement": "right", "calcs": [], "values": ["value"]},
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case "gauge":
            return {
                "reduceOptions": last,
                "orientation": "auto",
                "sizing": "auto",
                "minVizWidth": 75,
                "minVizHeight": 75,
                "showThresholdLabels": False,
                "showThresholdMarkers": True,
            }
        case "stat":
            return {
                "reduceOptions": last,
                "orientation": "auto",
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "textMode": "value_and_name",
                "wideLayout": True,
                "showPercentChange": False,
                "percentChangeColorMode": "standard",
            }
        case unknown:
            raise ValueError(f"no options for a panel of type {unknown}")


def main() -> int:
    """Write the file; or with --check, answer 1 if it is not what this makes."""
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not PATH.exists() or PATH.read_text("utf-8") != text)
    PATH.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
