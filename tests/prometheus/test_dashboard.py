"""The Grafana dashboard: made by its script, in Grafana's form, of queries that Prometheus understands."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard import asked, dashboard, panels, substituted
from tests.support.promtool import CHECKOUT, check_expressions, metrics_in, wrongly_added
from uno.event_bus.dead_letter.telemetry.names import TABLE

GUIDE = {
    "DLQ Queue Size": "gauge",
    "Processing Time": "timeseries",
    "Events Processed": "stat",
    "Error Rate": "timeseries",
    "Retry Distribution": "piechart",
}
"""The deployment guide's five panels."""

UNITS = {"short", "s", "eps", "percentunit", "bytes", "Bps"}


def test_it_is_what_its_script_makes() -> None:
    run = subprocess.run([sys.executable, CHECKOUT / "scripts" / "dashboard.py", "--check"], check=False)
    assert run.returncode == 0, "scripts/dashboard.py was changed and not run"


def test_the_guides_five_panels_come_first() -> None:
    assert {panel["title"]: panel["type"] for panel in panels()[:5]} == GUIDE
    assert [panel["title"] for panel in panels()[:5]] == list(GUIDE)


def test_promtool_understands_every_query(tmp_path: Path) -> None:
    assert check_expressions(tmp_path, (substituted(query.expr) for query in asked())) == ""
    assert "unclosed" in check_expressions(tmp_path, ["sum(dlq_workers"])


def test_queries_use_only_metrics_that_exporters_have_and_add_up_none_that_all_have_alike() -> None:
    for query in asked():
        assert metrics_in(query.expr), query
        assert wrongly_added(query.expr) == [], query


def test_every_metric_is_on_some_panel() -> None:
    shown = {metric.name for query in asked() for metric in metrics_in(query.expr).values()}
    assert shown == TABLE.keys()


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    fields = [field for panel in everything for field in _fields(panel["gridPos"])]
    assert len(set(fields)) == len(fields)
    assert all(0 <= x < 24 for x, _ in fields)


def test_rows_stand_above_their_panels() -> None:
    order = [panel["gridPos"]["y"] for panel in dashboard()["panels"]]
    assert order == sorted(order)
    assert [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"] == [
        "State of the queue",
        "Shards and workers",
        "Outcomes by type",
        "Errors",
        "Redis servers",
        "Spool",
    ]


@pytest.mark.parametrize("panel", [pytest.param(panel, id=panel["title"]) for panel in panels()])
class TestEachPanel:
    def test_it_says_what_it_shows_in_which_unit(self, panel: dict[str, Any]) -> None:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert all(target["legendFormat"] for target in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)

    def test_it_asks_the_data_source_that_was_chosen(self, panel: dict[str, Any]) -> None:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)

    def test_thresholds_rise_from_a_base(self, panel: dict[str, Any]) -> None:
        first, *steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert first is None and all(low < high for low, high in itertools.pairwise(steps))

    def test_a_total_over_the_time_shown_is_one_value(self, panel: dict[str, Any]) -> None:
        for target in panel["targets"]:
            assert target["instant"] == ("$__range" in target["expr"]) != target["range"]
            assert not target["instant"] or panel["type"] != "timeseries"


def test_thresholds_are_the_guides() -> None:
    queue_size, seconds, _, errors, _ = (
        [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] for panel in panels()[:5]
    )
    assert queue_size[-1] == 1000 and seconds[-1] == 5 and errors[-1] == 10


def test_exemplars_are_on_where_handlers_are_timed() -> None:
    with_exemplars = {p["title"] for p in panels() for target in p["targets"] if target["exemplar"]}
    assert with_exemplars == {"Processing Time"}


def test_every_variable_is_used_and_none_is_missing() -> None:
    made = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    used = {name for query in asked() for name in re.findall(r"\$(?!__)\{?(\w+)", query.expr)}
    assert used == made.keys() - {"datasource"} == {"queue", "shard", "type"}
    assert made["datasource"]["query"] == "prometheus"
    for name in used:
        values = re.fullmatch(r"label_values\((.+), (\w+)\)", made[name]["query"]["query"])
        assert values and values[2] == name
        assert name in next(iter(metrics_in(values[1]).values())).labels
        assert made[name]["multi"] and made[name]["includeAll"]


def _fields(place: dict[str, int]) -> list[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    return list(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
