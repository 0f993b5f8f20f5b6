"""Contexts as letters carry them, and whether there is anybody to trace for."""

import json
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from uno.event_bus.dead_letter.history import Attempt, History
from uno.event_bus.dead_letter.letter import FIELDS, Counters, Letter, LetterState
from uno.event_bus.dead_letter.retry import PolicyByException, as_policy, most_attempts
from uno.event_bus.dead_letter.telemetry import semconv
from uno.event_bus.dead_letter.telemetry.tracing.carriers import (
    conversation_of,
    creation_in,
    previous_attempt,
    remember,
    trace_of,
)
from uno.event_bus.dead_letter.telemetry.tracing.tracers import Tracers, harmless
from uno.event_bus.dead_letter.telemetry.tracing.work import WorkSpans

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def header(flags: str = "01", trace_id: str = TRACE, version: str = "00") -> str:
    return f"{version}-{trace_id}-{SPAN}-{flags}"


def letter(history: History | None, failures: int, headers: Any = None) -> Letter:
    packed = b"" if history is None else history.pack()
    values = [json.dumps(headers).encode() if name == "headers" else None for name in FIELDS]
    return Letter("0-1-0", values, state=LetterState.LEASED, counters=Counters(failures), packed_history=packed)


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": header()},
        {"traceparent": header("03")},
        {"traceparent": header("ff")},
        {"traceparent": header(trace_id="0" * 32)},
        {"traceparent": header(trace_id=TRACE.upper())},
        {"traceparent": header(version="01")},
        {"traceparent": header(version="ff")},
        {"traceparent": f" {header()} "},
        {"traceparent": f"{header()}-more"},
        {"traceparent": f"{header()}\n"},
        {"traceparent": header(trace_id="+" + TRACE[1:])},
        {"traceparent": "x" * 1000},
        {"traceparent": header(), "tracestate": "a=1,b=2"},
        {"traceparent": header(), "tracestate": "=", "baggage": "tenant=acme"},
        {"baggage": "tenant=acme"},
        {"other": "x"},
        {},
    ],
)
def test_the_short_way_reads_what_the_propagator_reads(headers: dict[str, str]) -> None:
    expected = propagate.extract(headers, Context())
    found = trace_of(letter(None, 0, headers), Context())
    span = trace.get_current_span(expected).get_span_context()
    assert found.last == (span if span.is_valid else None)
    assert (found.creation and found.creation.context) == found.last
    context = found.context(Context())
    assert trace.get_current_span(context).get_span_context() == span
    assert [v for v in context.values() if isinstance(v, dict)] == [v for v in expected.values() if isinstance(v, dict)]
    assert creation_in(headers) == found.last


@pytest.mark.parametrize("value", [None, 7, 1.5, [], ["00"], {}, {"traceparent": header()}, True])
def test_headers_of_any_kind_raise_nothing(value: Any) -> None:
    """They are JSON that anybody may have written."""
    headers = {"traceparent": value, "tracestate": value, "baggage": value}
    assert trace_of(letter(None, 0, headers), Context()).creation is None
    assert trace_of(letter(None, 0, [headers]), Context()).creation is None
    assert creation_in(headers) is None


@pytest.mark.parametrize("packed", [b"", b"{", b"\xff", b'{"traceparent":"\xff"}', b"null"])
def test_headers_that_are_no_json_raise_nothing(packed: bytes) -> None:
    values = [packed if name == "headers" else None for name in FIELDS]
    assert trace_of(Letter("0-1-0", values, state=LetterState.LEASED), Context()).creation is None


def test_the_callers_own_span_is_no_creation_context() -> None:
    base = trace.set_span_in_context(trace.NonRecordingSpan(SpanContext(1, 2, True)), Context())
    found = trace_of(letter(None, 0, {"traceparent": "broken"}), base)
    assert (found.creation, found.last, found.context(base)) == (None, None, base)
    found = trace_of(letter(None, 0, {"traceparent": header()}), base)
    assert found.last is not None and f"{found.last.trace_id:032x}" == TRACE
    assert trace.get_current_span(found.context(base)).get_span_context() == found.last


def test_another_propagator_is_asked_in_place_of_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagate, "get_global_textmap", TraceContextTextMapPropagator)
    monkeypatch.setattr(propagate, "extract", lambda *_, **__: Context({"asked": True}))
    found = trace_of(letter(None, 0, {"traceparent": header()}), Context())
    assert found.creation is None and found.context(Context()) == {"asked": True}


def test_an_attempt_finds_the_one_before() -> None:
    """Its number is kept, because an attempt that asks for another try does not raise it."""
    history = History([Attempt(1, "w", 0.1, "E", "m")], {})
    remember(history, SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(3), TraceState([("v", "1")])), 4)
    assert history.trace == {"traceparent": header("03"), "attempt": "4", "tracestate": "v=1"}
    link = previous_attempt(letter(history, 4))
    assert link is not None and link.attributes == {"dlq.link.type": "previous_attempt", "dlq.attempt": 4}
    assert f"{link.context.span_id:016x}" == SPAN and link.context.trace_flags == 3


def test_a_long_trace_state_leaves_the_history_its_room() -> None:
    history = History()
    remember(history, SpanContext(1, 2, False, TraceFlags(1), TraceState([("v", "x" * 256)])), 1)
    assert history.trace.keys() == {"traceparent", "attempt"}


@pytest.mark.parametrize("carrier", [{}, {"traceparent": "00-1"}, {"attempt": "2"}])
def test_a_history_without_a_context_gives_no_link(carrier: dict[str, str]) -> None:
    assert previous_attempt(letter(History([], carrier), 1)) is None
    assert previous_attempt(letter(None, 1)) is None


def test_a_history_of_another_writer_is_numbered_by_the_failures() -> None:
    link = previous_attempt(letter(History([], {"traceparent": header()}), 2))
    assert link is not None and link.attributes is not None and link.attributes["dlq.attempt"] == 2


@pytest.mark.parametrize(
    ("headers", "found"),
    [({"correlation_id": "c"}, "c"), ({"conversation_id": 7}, "7"), ({"correlation_id": ""}, ""), ({}, "")],
)
def test_the_conversation_is_the_correlation_id(headers: dict[str, Any], found: str) -> None:
    assert conversation_of(headers) == found
    assert trace_of(letter(None, 0, {"traceparent": header(), **headers}), Context()).conversation == found


@pytest.mark.parametrize("name", semconv.CONVERSATION_HEADERS)
def test_the_short_way_knows_every_name_of_the_correlation_id(name: str) -> None:
    headers = {"traceparent": header(), name: "c"}
    assert trace_of(letter(None, 0, headers), Context()).conversation == conversation_of(headers) == "c"


def test_an_attempt_is_current_until_it_ends() -> None:
    """The task that ran it goes on with other letters, and logs."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("x")
    span = WorkSpans(tracer, "orders", "me", Context()).attempt(letter(None, 0), 0, None, 5)
    assert span is not None and trace.get_current_span().get_span_context().is_valid
    span.end(False)
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_there_is_nobody_to_trace_for_without_a_real_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tracers().current() is None
    assert Tracers(trace.NoOpTracerProvider()).current() is None
    provider = TracerProvider(shutdown_on_exit=False)
    tracers = Tracers(provider)
    assert tracers.current() is tracers.current() is not None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Tracers(TracerProvider(shutdown_on_exit=False)).current() is None


def test_what_is_harmless_raises_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    @harmless
    def broken() -> int:
        raise RuntimeError("no")

    assert broken() is None and broken() is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (as_policy(5.0, max_retries=3), 3),
        (as_policy(5.0, max_retries=0), 1),
        (as_policy(5.0, max_retries=None), None),
        (as_policy([1, 2]), 2),
        (as_policy(None), 1),
        (as_policy(lambda attempt: None), None),
        (PolicyByException({}, default=[1, 2, 3]), 3),
    ],
)
def test_how_many_attempts_a_policy_allows(policy: Any, attempts: int | None) -> None:
    assert most_attempts(policy) == attempts
