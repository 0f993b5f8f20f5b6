"""The fault harness: ``python -m tests.faults``; `make faults` runs it all.

Without arguments every row is run on the whole engine, then every mutant on the rows that must catch it. The last
line sums it up; the exit status is 0 when every row kept its promises and every mutant was caught.
"""

import argparse
import secrets
import sys
import time
from collections.abc import Iterable

from tests.faults.mutants import MUTANTS
from tests.faults.places import Places
from tests.faults.rows.registry import ROWS, in_order
from tests.faults.table import head, line, markdown, summary, table
from tests.faults.trial import Shown, Tried, run_row, seed_of, try_mutant
from tests.support import binaries
from tests.support.crews import say


def main() -> int:
    asked = arguments()
    if asked.list:
        for row in in_order():
            say(f"{row.name:<20} {row.topology:<11} {row.what}")
        for name, mutant in MUTANTS.items():
            say(f"{name:<20} {'mutant':<11} {mutant.what} ({', '.join(mutant.rows)})")
        return 0
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1_000_000)
    say(f"seed {seed}: --seed {seed} replays it; on {binaries.EMBEDDED}")
    began = time.monotonic()
    with Places() as places:
        rows = run_rows(places, asked.rows, seed, asked)
        mutants = try_mutants(places, asked.mutants, seed)
    table(rows, mutants)
    if asked.markdown:
        say(f"\n{markdown(rows)}")
    say(f"\n{summary(rows, mutants, seed, time.monotonic() - began)}")
    return int(any(row.is_bad for row in rows) or any(mutant.is_bad for mutant in mutants))


def arguments() -> argparse.Namespace:
    """What is asked for; `rows` and `mutants` are lists of names then."""
    parser = argparse.ArgumentParser(
        prog="tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="names, separated by commas; all, none; default: all, unless mutants are named")
    parser.add_argument("--mutants", help="likewise; default: all, unless rows are named")
    parser.add_argument("--seed", type=int, help="replays a run; each row makes its own seed of it")
    parser.add_argument("--row-seed", type=int, help="the seed of the rows themselves, as the table shows it")
    parser.add_argument("--markdown", action="store_true", help="print the table as the README has it, too")
    parser.add_argument("--keep", action="store_true", help="keep the histories of each row, and say where")
    parser.add_argument("--list", action="store_true", help="list rows and mutants, and run nothing")
    asked = parser.parse_args()
    rows, mutants = asked.rows, asked.mutants
    asked.rows = chosen(parser, rows or ("none" if mutants else "all"), [row.name for row in in_order()])
    asked.mutants = chosen(parser, mutants or ("none" if rows else "all"), list(MUTANTS))
    return asked


def chosen(parser: argparse.ArgumentParser, wish: str, names: list[str]) -> list[str]:
    if wish in ("all", "none"):
        return names if wish == "all" else []
    found = [name for name in wish.split(",") if name]
    if unknown := [name for name in found if name not in names]:
        parser.error(f"{', '.join(unknown)} not known; --list shows what there is")
    return found


def run_rows(places: Places, names: Iterable[str], seed: int, asked: argparse.Namespace) -> list[Shown]:
    """Run rows, and say a line as each ends."""
    shown: list[Shown] = []
    for name in names:
        if not shown:
            say(head())
        row = ROWS[name]
        row_seed = asked.row_seed if asked.row_seed is not None else seed_of(seed, name)
        shown.append(run_row(places, row, row_seed, keep=asked.keep))
        say(line(shown[-1]))
        if shown[-1].is_bad:
            say("    " + "\n    ".join(shown[-1].notes))
        sys.stdout.flush()
    return shown


def try_mutants(places: Places, names: Iterable[str], seed: int) -> list[Tried]:
    """Try mutants, and say a line as each is caught, or not."""
    tried: list[Tried] = []
    for name in names:
        tried.append(try_mutant(places, name, MUTANTS[name], seed))
        say(f"mutant {name}: {tried[-1].verdict} by {tried[-1].row}: {tried[-1].note}")
        sys.stdout.flush()
    return tried


if __name__ == "__main__":
    sys.exit(main())
