"""The fault harness: ``python -m tests.faults [--seed N] [--rows F1,F6] [mutants]``; `make faults` runs it all."""

import argparse
import secrets
import sys
import time

from tests.faults.places import Places
from tests.faults.rows import network, nodes, pairs, servers, workers
from tests.faults.rows.registry import ROWS
from tests.faults.table import head, line, run_row, seed_of, table
from tests.support.crews import say

MODULES = (workers, nodes, network, servers, pairs)
"""Imported for the rows that they register."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["rows", "mutants"], default="rows")
    parser.add_argument("--seed", type=int, default=None, help="replays a run; each row makes its own seed of it")
    parser.add_argument("--row-seed", type=int, default=None, help="the seed of the rows themselves, as the table shows")
    parser.add_argument("--rows", default="", help="names, separated by commas; default: all")
    parser.add_argument("--keep", action="store_true", help="keep the histories of each row")
    parser.add_argument("--list", action="store_true", help="list the rows")
    asked = parser.parse_args()
    if asked.list:
        for row in ROWS.values():
            say(f"{row.name:20} {row.topology:11} {row.what}")
        return 0
    names = [name for name in asked.rows.split(",") if name] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no rows are called {', '.join(unknown)}; --list shows them")
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1_000_000)
    say(f"seed {seed}: --seed {seed} replays it")
    shown = []
    began = time.monotonic()
    with Places() as places:
        say(head())
        for name in names:
            row = ROWS[name]
            row_seed = asked.row_seed if asked.row_seed is not None else seed_of(seed, row)
            shown.append(run_row(places, row, row_seed, keep=asked.keep))
            say(line(shown[-1]))
            sys.stdout.flush()
            if shown[-1].is_bad:
                say("    " + "\n    ".join(shown[-1].notes))
    say(f"\nafter {time.monotonic() - began:.0f} s, seed {seed}:")
    table(shown)
    return int(any(one.is_bad for one in shown))


if __name__ == "__main__":
    sys.exit(main())
