"""The SDK by `OTEL_*`: set up when the variables ask for it, and told in one line what is wrong with them."""

import subprocess
import sys
from time import monotonic
from typing import Any

import pytest

from uno.event_bus.dead_letter import ConfigError
from uno.event_bus.dead_letter.telemetry.sdk import tracing_from_env

OTLP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

SET_UP = """
from opentelemetry import trace
from uno.event_bus.dead_letter.telemetry.sdk import tracing_from_env
end = tracing_from_env()
provider = trace.get_tracer_provider()
print(type(provider).__name__, *(provider.resource.attributes["service.name"], provider.sampler.get_description())
      if hasattr(provider, "resource") else ())
with trace.get_tracer("x").start_as_current_span("one"):
    pass
end()
"""


def run(code: str, **variables: str) -> str:
    """Run code in a process of its own, because a global provider is set once; return what it prints."""
    environment = {"PYTHONPATH": ":".join(sys.path)} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp, console and none"),
        ("OTEL_TRACES_EXPORTER", "console,zipkin", "otlp, console and none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf and grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "thrift", "http/protobuf and grpc"),
    ],
)
def test_a_value_that_is_not_known_is_told_with_what_is(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*allowed are {allowed}$"):
        tracing_from_env({"OTEL_TRACES_EXPORTER": "otlp"} | {name: value})


@pytest.mark.parametrize(
    "variables", [{"OTEL_TRACES_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_an_exporter_that_is_not_installed_is_told_with_the_way_out(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, OTLP, None)  # as if it were not there
    with pytest.raises(ConfigError) as refused:
        tracing_from_env(variables)
    text = str(refused.value)
    assert "uno-dead-letter[otlp]" in text and "OTEL_TRACES_EXPORTER=none" in text and "\n" not in text


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_set_up_unless_it_is_asked_for(variables: dict[str, Any]) -> None:
    from opentelemetry import trace

    before = trace.get_tracer_provider()
    tracing_from_env(variables)()
    assert trace.get_tracer_provider() is before


def test_the_sdk_reads_service_and_sampler_and_the_end_flushes() -> None:
    plain = run(SET_UP, OTEL_TRACES_EXPORTER="console")
    assert plain.startswith("TracerProvider uno-dead-letter ParentBased") and '"name": "one"' in plain
    named = run(
        SET_UP,
        OTEL_TRACES_EXPORTER="console",
        OTEL_SERVICE_NAME="shop",
        OTEL_TRACES_SAMPLER="traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0",
    )
    assert named == "TracerProvider shop TraceIdRatioBased{0.0}\n"
    assert run(SET_UP, OTEL_TRACES_EXPORTER="console", OTEL_RESOURCE_ATTRIBUTES="service.name=till").startswith(
        "TracerProvider till "
    )


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end() -> None:
    """Nor does it at the interpreter's own end."""
    hangs = """
import time
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from uno.event_bus.dead_letter.telemetry import sdk
sdk.FLUSH_S = 0.2
ConsoleSpanExporter.export = lambda self, spans: time.sleep(60)
"""
    began = monotonic()
    run(hangs + SET_UP, OTEL_TRACES_EXPORTER="console")
    assert monotonic() - began < 45


def test_a_provider_of_the_applications_own_stays() -> None:
    own = "from opentelemetry import trace\ntrace.set_tracer_provider(trace.NoOpTracerProvider())\n"
    assert run(own + SET_UP, OTEL_TRACES_EXPORTER="console") == "NoOpTracerProvider\n"


def test_neither_help_nor_the_engine_imports_the_sdk() -> None:
    """Nor does `--help` import the API. redis-py imports the SDK of metrics where it is installed; nothing of ours."""
    names = "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    assert run(f"import sys, uno.event_bus.dead_letter; {names}") == "[]\n"
    engine = "from uno.event_bus.dead_letter import DeadLetterQueue; import uno.event_bus.dead_letter.telemetry.sdk"
    assert "opentelemetry.sdk.trace" not in run(f"import sys; {engine}; {names}")
    helped = "from click.testing import CliRunner; from uno.cli.group import uno"
    show = "CliRunner().invoke(uno, ['dead-letter', '--help'])"
    assert run(f"import sys; {helped}; {show}; {names}") == "[]\n"
