"""The benchmark's page for people, and the verdict."""

from dataclasses import replace
from typing import Any

import pytest

from uno.cli.dead_letter.bench_page import print_bench
from uno.event_bus.dead_letter.bench.report import (
    Books,
    Failover,
    Latency,
    NodeFigures,
    ProcessFigures,
    Report,
    Setup,
)


def report(*, lost: int = 0) -> Report:
    unused: dict[str, Any] = dict.fromkeys(Setup.__slots__, 0)
    latency = Latency(5, 1.0, 12.345, 12_345.0, None)
    node = NodeFigures("127.0.0.1:7000", "replica", "primary", "valkey 9", 5, 1.5, 0.5, 0.1)
    return Report(
        setup=Setup(**unused | {"kind": "given", "servers": ["valkey 9"], "primaries": 3, "replicas": 3}),
        seconds=12.0,
        capture_per_s=1234.5,
        processing_per_s=None,
        capture=latency,
        due_to_start=latency,
        books=Books(5, 5, 5 - lost, 0, 0, 1, 6, 0, lost),
        errors={"store_unavailable": 2},
        nodes=[node, replace(node, address="/tmp/" + 90 * "x", cpu_seconds=None, cpu_share=None, cpu_of_a_core=None)],
        letters_by_shard=[5],
        balance_of_shards=1.0,
        balance_of_nodes=1.5,
        failover=Failover("127.0.0.1:7000", 1, [0, 2], 4.0, 2.5, 2.25, 1.5, 1.75),
        processes=[ProcessFigures("producer", 5, 1.0, 0.25)],
        verify_clean=True,
        violations=[],
        notes=["read me"],
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_keeps_within_its_columns_and_ends_with_the_verdict(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_bench(report())
    page = capsys.readouterr().out
    lines = page.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[-1].rstrip() == "lost 0; verify clean; took 12.0 s"
    for words in (
        "3 primaries + 3 replicas",
        "1,234  1.0 ms  12.3 ms  12.3 s",
        "replica, was primary",
        "shards 1.00, nodes 1.50",
        "the primary of shards 0, 2, after 4.0 s",
        "longest time without a capture",
        "2.50 s",
        "errors that producers saw: store_unavailable 2",
        "note: read me",
    ):
        assert words in page


def test_a_report_with_a_lost_letter_is_not_sound() -> None:
    assert report().sound and not report(lost=1).sound
