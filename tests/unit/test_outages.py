"""Outages: a failure that repeats is said once a cause, then ever more rarely, and once when it is over."""

import logging
from collections.abc import Callable

import pytest

from uno.event_bus.dead_letter.errors import QueueFull, StoreUnavailable
from uno.event_bus.dead_letter.worker.outages import LONGEST_SILENCE_S, MOST_CAUSES, Outages

AWAY = StoreUnavailable("Connection refused at a:1")


class Clock:
    """What the outages take for the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("uno.event_bus.dead_letter.worker.outages.monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said since it was last asked."""
    caplog.set_level(logging.INFO)

    def said() -> list[str]:
        found = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return found

    return said


def test_one_outage_of_all_roles_is_one_line_and_its_end_another(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """Whoever fails first says so; the last one that is at work again says that it is over."""
    outages = Outages()
    taker, settler = outages.of("shard 0"), outages.of("shard 1")
    taker.failed("cannot take", AWAY)
    for _ in range(20):
        clock.now += 0.1
        taker.failed("cannot take", AWAY)
        settler.failed("5 outcomes wait", StoreUnavailable(AWAY.why, certain=True))  # the same cause all the same
    assert lines() == [f"WARNING shard 0: cannot take: {AWAY.why}"]
    clock.now += 0.5
    taker.over()
    assert lines() == []
    settler.over()
    assert lines() == [f"INFO over after 2.5 s: {AWAY.why} (40 failures were not logged)"]
    taker.over()
    assert lines() == []


def test_a_long_outage_is_said_again_at_growing_intervals(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """After 5, 10, 20, then every 30 s, with the count of what was not said."""
    settler = Outages().of("shard 0")
    at: list[float] = []
    for n in range(8 * 150):
        settler.failed("3 outcomes wait", AWAY)
        if said := lines():
            at.append(clock.now - 1000)
            if n:
                seconds = at[-1] - at[-2]
                assert said == [
                    f"WARNING shard 0: 3 outcomes wait: {AWAY.why} "
                    f"({seconds * 8 - 1:g} more failures since the last such line)"
                ]
        clock.now += 0.125
    assert at == [0, 5, 15, 35, 65, 95, 125]
    assert LONGEST_SILENCE_S == 30


def test_each_cause_is_said(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """Another error, or another node, is news; one end is said for all of them."""
    taker = Outages().of("shard 0")
    for error in (AWAY, QueueFull("q"), StoreUnavailable("Timeout at b:2"), AWAY, "no answer", RuntimeError()):
        taker.failed("cannot take", error)
    assert [line.removeprefix("WARNING shard 0: cannot take: ") for line in lines()] == [
        AWAY.why,
        str(QueueFull("q")),
        "Timeout at b:2",
        "no answer",
        "RuntimeError",
    ]
    taker.over()
    [end] = lines()
    assert end.startswith("INFO over after 0.0 s: ") and end.endswith("(1 failures were not logged)")
    assert all(text in end for text in (AWAY.why, "Timeout at b:2", "no answer"))


def test_an_outage_of_one_place_is_over_while_another_lasts(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """Two nodes of a cluster: the end of the one is not the end of the other."""
    outages = Outages()
    here, there = outages.of("shard 0"), outages.of("shard 1")
    here.failed("cannot take", AWAY)
    there.failed("cannot take", StoreUnavailable("Timeout at b:2"))
    lines()
    there.over()
    [end] = lines()
    assert "Timeout at b:2" in end and AWAY.why not in end


def test_what_breaks_and_heals_all_the_time_is_no_flood(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """A network that resets every connection ten times a second: neither the breaks nor the ends are all said."""
    taker = Outages().of("shard 0")
    said = []
    for _ in range(200):
        taker.failed("cannot take", AWAY)
        clock.now += 0.05
        taker.over()
        said += lines()
        clock.now += 0.05
    assert len(said) == 6  # at 0, 5 and 15 s: one that it broke, one that it is over
    assert sum(line.startswith("WARNING") for line in said) == 3


def test_a_cause_that_was_over_for_long_is_news_again(clock: Clock, lines: Callable[[], list[str]]) -> None:
    """A minute later nobody connects it with the first one."""
    taker = Outages().of("shard 0")
    taker.failed("cannot take", AWAY)
    clock.now += 1
    taker.over()
    lines()
    clock.now += 61
    taker.failed("cannot take", AWAY)
    assert lines() == [f"WARNING shard 0: cannot take: {AWAY.why}"]


def test_texts_that_never_repeat_do_not_grow_the_memory(clock: Clock) -> None:
    """An error may carry a number."""
    outages = Outages()
    taker = outages.of("shard 0")
    for n in range(10 * MOST_CAUSES):
        taker.failed("cannot take", RuntimeError(f"attempt {n}"))
    assert len(outages._causes) <= MOST_CAUSES
    assert len(taker.causes) <= MOST_CAUSES
