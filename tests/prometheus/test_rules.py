"""The rules: promtool passes them; each alert has a runbook, a case that makes it fire, and one that keeps it quiet."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.promtool import CHECKOUT, RECORDED, RULES, metrics_in, promtool, read_yaml, wrongly_added

CASES = sorted((Path(__file__).parent / "rules").glob("*.yml"))

GUIDE = {
    "HighDLQBacklog": ("max by (queue) (dlq_queue_size) > 1000", "15m", "warning"),
    "DLQProcessingErrors": ("sum by (queue) (rate(dlq_processing_errors_total[5m])) > 10", "5m", "critical"),
}
"""The deployment guide's own rules: names, thresholds, durations and severities, which stay."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in read_yaml(RULES)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def expectations() -> Iterator[tuple[str, bool]]:
    """Every (alert, does it fire?) that the cases assert."""
    for file in CASES:
        for case in read_yaml(file)["tests"]:
            for expected in case.get("alert_rule_test", ()):
                yield expected["alertname"], bool(expected.get("exp_alerts"))


def test_promtool_passes_the_rules_and_knows_no_lint_against_them() -> None:
    run = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert run.returncode == 0 and f"{len(rules())} rules found" in run.stdout, run.stdout + run.stderr


def test_promtool_passes_the_example_configuration(tmp_path: Path) -> None:
    """It also looks for the files that are named: the rules, and a token, which no checkout has."""
    shutil.copy(RULES, tmp_path)
    config, token = tmp_path / "prometheus.yml", tmp_path / "token"
    text = (RULES.parent / config.name).read_text()
    config.write_text(text.replace("/run/secrets/dlq_prometheus_token", str(token)))
    token.touch()
    run = promtool("check", "config", "--lint=all", "--lint-fatal", config)
    assert run.returncode == 0 and "1 rule files found" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_rules_answer_the_cases(file: Path) -> None:
    run = promtool("test", "rules", file)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_has_a_case_that_makes_it_fire_and_one_that_keeps_it_quiet() -> None:
    assert set(expectations()) == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        pytest.param("({}) and vector(1) == 2", r"exp:\[\s+0:.+got:\[\]", id="never fires"),
        pytest.param('label_replace(vector(1), "queue", "any", "", "")', r"exp:\[\].+got:\[\s+0:", id="always fires"),
    ],
)
@pytest.mark.parametrize("file", [file for file in CASES if file.stem != "names"], ids=lambda file: file.stem)
def test_cases_catch_each_alert_that(tmp_path: Path, file: Path, expression: str, said: str) -> None:
    tested = {expected["alertname"] for case in read_yaml(file)["tests"] for expected in case["alert_rule_test"]}
    broken = [
        rule | {"expr": expression.format(rule["expr"]), "for": "0s"} for rule in map(alerts().get, tested) if rule
    ]
    with (tmp_path / RULES.name).open("w") as out:
        YAML().dump({"groups": [{"name": "broken", "rules": broken}]}, out)
    copy = tmp_path / file.name
    copy.write_text(file.read_text().replace("../../../deploy/prometheus/", ""))
    run = promtool("test", "rules", copy)
    complaints = (run.stdout + run.stderr).split("alertname:")[1:]
    assert {each.split()[0].rstrip(",") for each in complaints if re.search(said, each, re.DOTALL)} == tested


@pytest.mark.parametrize("rule", [pytest.param(rule, id=name) for name, rule in alerts().items()])
class TestEachAlert:
    def test_it_says_how_bad_it_is_and_what_it_is_about(self, rule: dict[str, Any]) -> None:
        assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in {"critical", "warning", "info"}
        summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
        assert len(summary) <= 80 and not summary.endswith(".")
        assert "$labels.queue" in description and description.endswith(".")

    def test_its_link_leads_to_a_section_of_its_own(self, rule: dict[str, Any]) -> None:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor == rule["alert"].lower()
        section = sections(CHECKOUT / page)[rule["alert"]]
        parts = re.findall(r"^\*\*(\w+)(?:\.\*\*|\*\* it )", section, re.MULTILINE)
        assert parts == ["Means", "Look", "Do", "Ignore"]

    def test_what_every_exporter_has_alike_is_not_added_up(self, rule: dict[str, Any]) -> None:
        assert wrongly_added(rule["expr"]) == []


def test_runbooks_have_no_section_without_an_alert() -> None:
    assert list(sections(CHECKOUT / "docs" / "runbooks.md")) == list(alerts())


def test_runbooks_name_commands_that_there_are() -> None:
    from uno.cli.dead_letter.group import COMMANDS

    named = set(re.findall(r"uno dead-letter\s+([a-z]+)", (CHECKOUT / "docs" / "runbooks.md").read_text()))
    assert named and named <= COMMANDS.keys()


def test_the_guides_alerts_keep_its_thresholds() -> None:
    found = {name: (rule["expr"], rule.get("for"), rule["labels"]["severity"]) for name, rule in alerts().items()}
    assert {name: found[name] for name in GUIDE} == GUIDE


def test_rules_use_only_metrics_that_exporters_have() -> None:
    assert {rule["record"] for rule in rules() if "record" in rule} == RECORDED
    assert all(metrics_in(rule["expr"]) for rule in rules())


def sections(page: Path) -> dict[str, str]:
    """Heading → text, of the page's second level."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
