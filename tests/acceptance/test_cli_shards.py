"""`workers` and `reshard`, as an operator sees them."""

import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from tests.support.cli import Cli, wait_for_line
from tests.support.waiting import SOON_S


def test_workers_are_listed_with_the_shards_that_they_serve(cli: Cli, shop: Path) -> None:
    """One serves all; when it has left, the shards are named that nobody serves."""
    cli.seed(("good", {}), delay=60)
    process = cli.spawn("worker", "--app", "shop:queue", cwd=shop)
    wait_for_line(process, "serving")
    told = _told(cli, lambda told: told["workers"] and told["workers"][0]["shards"])
    assert (told["shards"], told["unserved"]) == (2, [])
    assert (told["workers"][0]["pid"], told["workers"][0]["shards"]) == (process.pid, [0, 1])
    shown = cli("workers", "-o", "table")
    assert "0 1" in shown.out and str(process.pid) in shown.out
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    told = _told(cli, lambda told: not told["workers"])  # its resignation may be late
    assert (told["workers"], told["unserved"]) == ([], [0, 1])
    assert "no worker serves 2 of 2 shards: 0 1" in cli("workers", "-o", "table").err


def _told(cli: Cli, check: Callable[[Any], Any]) -> Any:
    """What `workers` says, as soon as it is so."""
    deadline = monotonic() + SOON_S
    while True:
        [told] = cli("workers", "-o", "jsonl").records
        if check(told) or monotonic() > deadline:
            return told


def test_reshard_says_how_many_shards_there_are_now(cli: Cli) -> None:
    """A repeat says the same; a count that cannot be is one line and exit status 2."""
    cli.seed(("good", {}), delay=60)
    for _ in range(2):
        ran = cli("reshard", "8")
        assert (ran.status, ran.out) == (0, "queue default has 8 shards\n")
    refused = cli("reshard", "12")
    assert refused.status == 2 and "power of two" in refused.err and refused.err.count("\n") == 1
    assert cli("verify").status == 0
