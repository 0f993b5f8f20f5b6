"""A worker's own settings: what options and variables say of the process wins over the application's."""

from typing import Any

import pytest

from uno.cli.dead_letter.process import of_process
from uno.event_bus.dead_letter import DeadLetterConfig

NAMES = ("metrics_port", "metrics_host", "log_format", "log_level")
OF_APP = DeadLetterConfig(metrics_port=9464, metrics_host="0.0.0.0", log_format="json", log_level="debug", shards=8)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable says anything."""
    for name in NAMES:
        monkeypatch.delenv(f"DLQ_{name.upper()}", raising=False)


def settings(**options: Any) -> DeadLetterConfig:
    """What a worker that is given these options works with."""
    return of_process(DeadLetterConfig.from_env(**options), OF_APP, set(options))


def test_without_options_and_variables_the_application_decides() -> None:
    assert settings() == OF_APP


def test_an_option_wins_also_when_it_says_the_default() -> None:
    found = settings(metrics_host="127.0.0.1", metrics_port=0)
    assert (found.metrics_host, found.metrics_port) == ("127.0.0.1", 0)
    assert (found.log_level, found.shards) == ("debug", 8)


@pytest.mark.parametrize(
    ("name", "value"), [("log_level", "info"), ("log_format", "auto"), ("metrics_host", "127.0.0.1")]
)
def test_a_variable_wins_also_when_it_says_the_default(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(DeadLetterConfig(), name) == value
    monkeypatch.setenv(f"DLQ_{name.upper()}", value)
    assert getattr(settings(), name) == value


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(f"DLQ_{name.upper()}", "")
    assert settings() == OF_APP
