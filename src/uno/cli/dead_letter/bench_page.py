"""A page about one benchmark, for people: what ran where, the figures, and what to think of them."""

from typing import TYPE_CHECKING, Final

from uno.cli.dead_letter.output import console, fit, table
from uno.cli.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from uno.event_bus.dead_letter.bench import Report
    from uno.event_bus.dead_letter.bench.report import Latency, Setup

__all__ = ["print_bench"]

LISTED: Final = 5
"""Violations that are named."""


def print_bench(report: "Report") -> None:
    """Print a report; the last line tells whether all letters are accounted for."""
    shown = console()
    for line in _setup(report.setup):
        _say(shown, line)
    _rates(shown, report)
    _nodes(shown, report)
    _failover(shown, report)
    _books(shown, report)
    _verdict(shown, report)


def _say(shown: "Console", line: str, style: str = "") -> None:
    from rich.text import Text

    shown.print(Text(one_line(line), style))


def _setup(setup: "Setup") -> list[str]:
    where = {"given": "yours", "embedded": "started here for this", "cluster": "started here for this"}[setup.kind]
    nodes = _count(setup.primaries, "primary", "primaries")
    if setup.replicas:
        nodes += f" + {_count(setup.replicas, 'replica')}"
    together = "; servers, workers and producers share this machine" if setup.is_shared else ""
    each = f"{setup.concurrency:,} {{}} at a time"
    return [
        f"uno {setup.uno}, Python {setup.python}, {setup.event_loop}; {setup.machine}, {_count(setup.cores, 'core')}",
        f"{', '.join(setup.servers) or 'servers that hide INFO'}: {nodes}, {where}{together}",
        f"queue {setup.queue}: {_count(setup.shards, 'shard')}, durability {setup.durability}",
        f"{_count(setup.letters, 'letter')} of {setup.payload_bytes:,} bytes, {setup.fail_rate:.0%} fail once; "
        f"seed {setup.seed}, {setup.at}",
        f"{_count(setup.producers, 'producer')}, {each.format('captures')}; "
        f"{_count(setup.workers, 'worker')}, {each.format('handlers')}",
    ]


def _rates(shown: "Console", report: "Report") -> None:
    made = table("", "letters/s", "p50", "p95", "p99", "max", right=("letters/s", "p50", "p95", "p99", "max"))
    made.add_row("capture, one call", _number(report.capture_per_s), *_percentiles(report.capture))
    made.add_row("processing, due → start", _number(report.processing_per_s), *_percentiles(report.due_to_start))
    shown.print()
    shown.print(made)


def _percentiles(latency: "Latency") -> list[str]:
    return [_duration(ms) for ms in (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)]


def _nodes(shown: "Console", report: "Report") -> None:
    right = ("letters", "cpu s", "share", "of a core")
    made = table("node", "role", *right, right=right)
    for node in report.nodes:
        role = node.role if node.role == node.role_before else f"{node.role}, was {node.role_before}"
        cpu = "–" if node.cpu_seconds is None else f"{node.cpu_seconds:.2f}"
        figures = (f"{node.letters:,}", cpu, _share(node.cpu_share), _share(node.cpu_of_a_core))
        made.add_row(one_line(node.address), role, *figures)
    for process in report.processes:
        made.add_row(
            process.role, "", f"{process.letters:,}", f"{process.cpu_seconds:.2f}", "", _share(process.cpu_of_a_core)
        )
    shown.print()
    fit(made, shown.width, "node")
    shown.print(made)
    if report.balance_of_shards and report.balance_of_nodes:
        nodes = f", nodes {report.balance_of_nodes:.2f}" if report.setup.primaries > 1 else ""
        _say(shown, f"balance, most ÷ mean letters: shards {report.balance_of_shards:.2f}{nodes}")


def _failover(shown: "Console", report: "Report") -> None:
    found = report.failover
    if found is None:
        return
    shards = f"shard{'s' if len(found.shards) > 1 else ''} {', '.join(map(str, found.shards))}"
    shown.print()
    _say(
        shown,
        f"killed {found.node} (pid {found.pid}), the primary of {shards}, after {found.killed_after_s:.1f} s",
        "bold",
    )
    made = table("", "", right=())
    made.show_header = False
    made.columns[1].justify = "right"
    for what, seconds in (
        ("its shards answered again after", found.answered_after_s),
        ("it was started again after", found.restarted_after_s),
        ("longest time without a capture", found.capture_gap_s),
        ("longest time without a start of a handler", found.start_gap_s),
    ):
        made.add_row(f"  {what}", f"{seconds:.2f} s")
    shown.print(made)


def _books(shown: "Console", report: "Report") -> None:
    books = report.books
    left = f" + open {books.open:,}" if books.open else ""
    shown.print()
    _say(shown, f"acknowledged {books.acknowledged:,}; resolved {books.resolved:,} + parked {books.parked:,}{left}")
    _say(
        shown,
        f"handlers ran {_count(books.runs, 'time')}; retried {books.retried:,}; duplicate runs {books.duplicates:,}",
    )
    errors = ", ".join(f"{one_line(code)} {calls:,}" for code, calls in report.errors.items())
    _say(shown, f"errors that producers saw: {errors}; each call was repeated" if errors else "producers saw no errors")


def _verdict(shown: "Console", report: "Report") -> None:
    shown.print()
    for line in report.notes:
        _say(shown, f"note: {line}", "yellow")
    for violation in report.violations[:LISTED]:
        _say(shown, f"verify: {violation}", "red")
    books = report.books
    clean = "clean" if report.verify_clean else f"found {len(report.violations):,} violations"
    left = f"; left open {books.open:,}" if books.open else ""
    style = "bold green" if report.sound else "bold red"
    _say(shown, f"lost {books.lost:,}{left}; verify {clean}; took {report.seconds:.1f} s", style)


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _duration(ms: float | None) -> str:
    if ms is None:
        return "–"
    if ms >= 10_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:,.0f} ms"
