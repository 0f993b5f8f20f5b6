"""Tests that are about time, on machines that stand still now and then.

``@pytest.mark.timed(0.2)`` says that a test may fail, though the engine is right, when a process of its own, or the
whole machine, stands still for longer than so many seconds: a lease of half a second is not kept by a worker that
gets no core for that long. Such a run proves nothing: when it failed, and something stood still, it is made once more,
and the end of the session tells which tests those were, and how they had failed. Other failures stand: of a fixture
alone, which has looked whether all letters are there, and those after half of the test's time (pytest-timeout's).
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

__all__ = ["TIMED", "Standstill", "pytest_runtest_protocol", "pytest_terminal_summary", "watched"]

TIMED: Final = "timed(margin_s): the test is made again if it failed while something stood still for longer than that"

LOOKS: Final = 5
"""In the time that something may stand still."""

MADE_AGAIN: Final = "made again"


class Standstill:
    """For how long something has stood still; what is shorter than the margin is no standstill."""

    def __init__(self, margin_s: float) -> None:
        self._margin_s = margin_s
        self._noted_at = time.monotonic()
        self.longest_s = 0.0
        self.total_s = 0.0

    def note(self, seconds: float) -> None:
        """Note that something has stood still until now; what has been noted of that time is not counted twice."""
        if seconds > self._margin_s:
            now = time.monotonic()
            self.longest_s = max(self.longest_s, seconds)
            self.total_s += min(seconds, now - self._noted_at)
            self._noted_at = now


def _waits_s() -> dict[str, float]:
    """How long each process that this one has started has waited for a core so far, as far as the system tells."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # a thread that has ended
            continue
        for pid in pids:
            try:
                found[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
            except (OSError, IndexError, ValueError):  # a process that has ended; a system that does not tell
                continue
    return found


@contextmanager
def watched(margin_s: float) -> Iterator[Standstill]:
    """Look, from a thread, how long this process or one that it has started gets no core while the block runs."""
    pause_s = margin_s / LOOKS
    seen, over = Standstill(margin_s), threading.Event()

    def look() -> None:
        waits_s, at = _waits_s(), time.monotonic()
        while not over.is_set():
            over.wait(pause_s)
            now, later = time.monotonic(), _waits_s()
            waited_s = [waited - waits_s.get(pid, 0.0) for pid, waited in later.items()]
            seen.note(max(now - at - pause_s, *waited_s, 0.0))
            waits_s, at = later, time.monotonic()

    thread = threading.Thread(target=look, name="standstill", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _timeout_s(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0] if mark is not None else item.config.getini("timeout"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: Any, nextitem: pytest.Item | None) -> bool | None:
    """Run a test that is about time, and again if that run proves nothing."""
    mark = item.get_closest_marker("timed")
    if mark is None:
        return None
    [margin_s] = mark.args
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    until = time.monotonic() + _timeout_s(item) / 2
    with watched(margin_s) as seen:
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failed = [report for report in reports if report.failed and report.when == "call"]
    if failed and seen.longest_s and time.monotonic() < until:
        why = failed[0].longreprtext.strip().rpartition("\n")[2]
        item.user_properties.append((MADE_AGAIN, f"{item.nodeid}: {seen.longest_s:.2f} s; {why}"))
        item._initrequest()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell which tests were made again."""
    reports = [
        report for of in terminalreporter.stats.values() for report in of if getattr(report, "when", "") == "call"
    ]
    told = sorted({text for report in reports for name, text in report.user_properties if name == MADE_AGAIN})
    if told:
        terminalreporter.section("made again, since something stood still")
        for text in told:
            terminalreporter.write_line(text)
