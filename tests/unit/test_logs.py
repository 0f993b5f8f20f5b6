"""Log lines: JSON with what they are about, no secrets, and repeats that are counted instead of written."""

import contextvars
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from uno.cli.logs import JsonLines, PlainLines, Repeats, log_to_stderr
from uno.event_bus.dead_letter.telemetry import log_fields, ration

type Read = Callable[[], list[Any]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 1000.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(ration, "monotonic", clock)
    return clock


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("uno.tests.logs")


@contextmanager
def logging_to(formatter: logging.Formatter, logger: logging.Logger) -> Iterator[tuple[Read, Repeats]]:
    """Lines of this logger as a worker would write them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    repeats = Repeats(handler)
    handler.addFilter(repeats)
    handler.addFilter(log_fields.Fields())
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False

    def read() -> list[Any]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        lines = text.splitlines()
        return [json.loads(line) for line in lines] if isinstance(formatter, JsonLines) else lines

    try:
        yield read, repeats
    finally:
        repeats.end()
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def read(logger: logging.Logger) -> Iterator[Read]:
    with logging_to(JsonLines(), logger) as (read, _):
        yield read


def test_a_line_is_one_json_object_with_time_level_logger_and_message(logger: logging.Logger, read: Read) -> None:
    logger.warning("two\nlines, %s", "\x1b[1m\u202e")
    [line] = read()
    assert line.keys() == {"ts", "level", "logger", "message"}
    assert line["level"] == "warning" and line["logger"] == "uno.tests.logs"
    assert line["message"] == "two\nlines, \x1b[1m\u202e"
    assert line["ts"].endswith("Z") and len(line["ts"]) == len("2026-11-25T12:00:00.000Z")


def test_text_of_any_kind_becomes_a_line_that_a_terminal_may_show() -> None:
    record = logging.makeLogRecord({"msg": "\x1b[1m \u202e \udc80", "letter_id": "\udc80", "attempt": 1})
    line = JsonLines().format(record)
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == "\x1b[1m \u202e ?" and json.loads(line)["letter_id"] == "?"
    assert PlainLines().format(record).endswith(r"\x1b[1m \u202e \udc80")


def test_an_error_is_a_line_of_its_own_beside_the_traceback(logger: logging.Logger, read: Read) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logger.exception("it failed")
    [line] = read()
    assert line["error"] == "ValueError: no way"
    assert (
        line["traceback"].startswith("Traceback (most recent call last):\n") and "in test_an_error" in line["traceback"]
    )


def test_what_a_task_works_on_is_in_its_lines_unless_a_line_names_another(logger: logging.Logger, read: Read) -> None:
    def work() -> None:
        log_fields.bind(queue="orders", worker="w-1")
        log_fields.bind(shard=3)
        logger.info("a")
        logger.info("b", extra={"shard": 4, "letter_id": "4-1-0"})

    contextvars.copy_context().run(work)
    logger.info("c")
    first, second, third = read()
    assert (first["queue"], first["worker"], first["shard"]) == ("orders", "w-1", 3)
    assert (second["queue"], second["shard"], second["letter_id"]) == ("orders", 4, "4-1-0")
    assert "queue" not in third


def test_the_current_span_is_in_every_line(logger: logging.Logger, read: Read) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
        logger.info("a")
    logger.info("b")
    context = span.get_span_context()
    inside, outside = read()
    assert (inside["trace_id"], inside["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert "trace_id" not in outside


@pytest.mark.parametrize("formatter", [JsonLines(), PlainLines()])
def test_a_password_in_a_url_is_in_no_line(logger: logging.Logger, formatter: logging.Formatter) -> None:
    with logging_to(formatter, logger) as (read, _):
        try:
            raise ConnectionError("redis://user:s3cr@et/x@host:6379 is away")
        except ConnectionError:
            logger.exception("at %s", "rediss://:s3cret@host", extra={"error": "redis://u:s3cret@host"})
        text = str(read())
    assert "s3cr" not in text and "://***@host" in text


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@host",
        "redis://s3cret@host",
        "redis://:s3cr:et@host",
        "redis://user:s3cr/s3cr@host",
        "redis://user:s3cr@s3cr/s3cr:s3cr@host",
        "redis://user:x/s3cr@host,redis://:s3cr@host",
    ],
)
def test_whatever_a_password_is_made_of_it_is_in_no_line(url: str) -> None:
    """Also what ought to have been quoted in a URL."""
    line = PlainLines().format(logging.makeLogRecord({"msg": f"({url}/0) is away"}))
    assert "s3cr" not in line and "://***@host/0) is away" in line


@pytest.mark.parametrize(
    "text",
    [
        "mail ann@shop.example",
        "see redis://host:6379/0, or mail ann@shop.example",
        "http://shop/orders?by=ann@shop.example",
        "http://shop:8080/of/ann@shop.example",
    ],
)
def test_an_address_that_is_no_password_stays_in_its_line(text: str) -> None:
    assert text in PlainLines().format(logging.makeLogRecord({"msg": text}))


@pytest.mark.parametrize("part", ["://", "://a", "://a:", "x", "://:a/", "@", ":"])
def test_a_long_line_is_searched_for_passwords_in_linear_time(part: str) -> None:
    """Anybody's text may come into one: 100 KiB of what looks like URLs took a second and more."""
    record = logging.makeLogRecord({"msg": "://" + part * (100_000 // len(part)) + " @"})
    began = time.process_time()
    PlainLines().format(record)
    assert time.process_time() - began < 0.5


def test_a_line_is_written_five_times_in_ten_seconds_and_then_counted(
    logger: logging.Logger, read: Read, clock: Any
) -> None:
    """Whatever is put into it; other lines are not held back by it."""

    def flood(lines: int) -> None:
        for i in range(lines):
            logger.warning("letter %s is lost", i)

    flood(1000)
    logger.warning("another")
    assert [line["message"] for line in read()] == [f"letter {i} is lost" for i in range(5)] + ["another"]
    clock.now += 10
    flood(7)
    counted, *again = read()
    assert counted["message"] == "995 more lines like this one were not logged: letter %s is lost"
    assert counted["level"] == "warning" and counted["logger"] == "uno.tests.logs"
    assert len(again) == 5


def test_the_count_is_told_without_another_such_line(
    logger: logging.Logger, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timer; at the end at the latest."""
    monkeypatch.setattr("uno.cli.logs.WINDOW_S", 0.02)
    monkeypatch.setattr(ration, "WINDOW_S", 0.0)
    monkeypatch.setattr(ration, "MOST_LINES", 0)
    with logging_to(JsonLines(), logger) as (read, repeats):
        logger.warning("once")
        assert repeats._timer is not None
        repeats._timer.join(20)
        assert [line["message"] for line in read()] == ["1 more lines like this one were not logged: once"]
        monkeypatch.setattr(ration, "WINDOW_S", 10.0)
        logger.warning("twice")
        repeats.end()
        assert [line["message"] for line in read()] == ["1 more lines like this one were not logged: twice"]


def test_debug_and_lines_of_others_are_never_held_back(read: Read, logger: logging.Logger, clock: Any) -> None:
    for _ in range(10):
        logger.debug("detail")
        logger.warning("it says so itself", extra={"is_rationed": True})
    assert len(read()) == 20
    with logging_to(JsonLines(), logging.getLogger("shop")) as (theirs, _):
        for _ in range(10):
            logging.getLogger("shop").info("sold")
        assert len(theirs()) == 10


def test_logging_that_an_application_has_set_up_is_left_alone() -> None:
    """Whether on the root or on the engine's logger; pytest has handlers on the root."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    assert root.handlers
    log_to_stderr("json", "debug")
    assert (root.handlers, root.level) == before
    handler = logging.NullHandler()
    root.handlers, engine = [], logging.getLogger("uno")
    engine.addHandler(handler)
    try:
        log_to_stderr("json", "debug")
        assert root.handlers == [] and engine.level == logging.NOTSET
    finally:
        root.handlers = before[0]
        engine.removeHandler(handler)


@pytest.mark.parametrize(("level", "engine", "others"), [("debug", 10, 20), ("info", 20, 20), ("error", 40, 40)])
def test_debug_is_for_the_engine_alone(level: str, engine: int, others: int) -> None:
    root, ours = logging.getLogger(), logging.getLogger("uno")
    before = root.handlers[:], root.level
    root.handlers = []
    try:
        log_to_stderr("auto", level)
        [made] = root.handlers
        assert (ours.level, root.level) == (engine, others)
        assert isinstance(made.formatter, PlainLines if sys.stderr.isatty() else JsonLines)
        made.close()
    finally:
        root.handlers, ours.level = before[0], logging.NOTSET
        root.setLevel(before[1])
