"""The ScaledObject for KEDA: of the form that KEDA takes, on a query that Prometheus understands."""

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped] # has no types, and needs none for two calls
import pytest

from tests.support.promtool import CHECKOUT, check_expressions, metrics_in, read_yaml, wrongly_added

FILE = CHECKOUT / "deploy" / "keda" / "scaledobject.yaml"


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these properties, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}

POLICY = _object("type value periodSeconds", type={"enum": ["Pods", "Percent"]}, value=POSITIVE, periodSeconds=POSITIVE)
SCALING = _object(stabilizationWindowSeconds=COUNT, policies={"type": "array", "items": POLICY})
TRIGGER = _object(
    "type metadata",
    type=TEXT,
    metricType={"enum": ["AverageValue", "Value"]},
    metadata={"type": "object", "additionalProperties": {"type": "string"}},
)
SCHEMA = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "keda.sh/v1alpha1"},
    kind={"const": "ScaledObject"},
    metadata=_object("name", name=TEXT),
    spec=_object(
        "scaleTargetRef triggers",
        scaleTargetRef=_object("name", name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=POSITIVE,
        pollingInterval=POSITIVE,
        fallback=_object(
            "failureThreshold replicas",
            failureThreshold=COUNT,
            replicas=COUNT,
            behavior={
                "enum": [
                    "static",
                    "currentReplicas",
                    "currentReplicasIfHigher",
                    "currentReplicasIfLower",
                    "scalingModifiers",
                ]
            },
        ),
        advanced=_object(horizontalPodAutoscalerConfig=_object(behavior=_object(scaleDown=SCALING, scaleUp=SCALING))),
        triggers={"type": "array", "items": TRIGGER, "minItems": 1},
    ),
)
"""The fields that we use, written by hand from KEDA's documentation of ScaledObject v1alpha1.

The whole CRD (kedacore/keda, config/crd/bases/keda.sh_scaledobjects.yaml, Apache-2.0) is none of ours to keep here; the
file was checked against it, too, with unknown fields forbidden.
"""

PROMETHEUS = _object(
    "serverAddress query threshold",
    serverAddress={"type": "string", "pattern": "^https?://"},
    query=TEXT,
    threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    activationThreshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    ignoreNullValues={"enum": ["true", "false"]},
)
"""What KEDA's scaler `prometheus` takes; the CRD has it as any strings."""


@pytest.fixture
def scaled() -> Any:
    return read_yaml(FILE)


def test_it_has_the_form_that_keda_takes(scaled: Any) -> None:
    jsonschema.validate(scaled, SCHEMA)
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    jsonschema.validate(trigger["metadata"], PROMETHEUS)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (("spec",), {"maxReplicas": 5}),
        (("spec", "triggers", 0, "metadata"), {"threshold": 250}),
        (("spec",), {"triggers": []}),
        (("spec", "scaleTargetRef"), {"name": ""}),
    ],
)
def test_the_schema_refuses(scaled: Any, where: tuple[str | int, ...], what: dict[str, Any]) -> None:
    part = scaled
    for step in where:
        part = part[step]
    part.update(what)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled, SCHEMA)


def test_its_query_counts_a_queue_once_and_leaves_out_what_no_worker_can_work_on(scaled: Any, tmp_path: Path) -> None:
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert check_expressions(tmp_path, [query]) == ""
    assert metrics_in(query).keys() == {"dlq_queue_size", "dlq_letters"}
    assert wrongly_added(query) == []
    assert 'state=~"parked|held"' in query


def test_workers_never_go_to_none_and_another_comes_before_the_backlog_alarms(scaled: Any) -> None:
    spec = scaled["spec"]
    threshold = float(spec["triggers"][0]["metadata"]["threshold"])
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    assert spec["minReplicaCount"] * threshold < 1000  # HighDLQBacklog
