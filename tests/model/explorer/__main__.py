"""Run the explorer: ``python -m tests.model.explorer --seed 7 --fault strangers``."""

import argparse
import sys
from time import monotonic

from tests.model.explorer.faults import CLASSES
from tests.model.explorer.mutants import MUTANTS
from tests.model.explorer.runner import Explorer
from tests.model.explorer.shrink import shrunk
from tests.model.explorer.wire import Wire
from tests.support import binaries
from tests.support.servers import Server


def say(words: str) -> None:
    """Print a line."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run seeds of the classes asked for; print each failure's shortest story; answer 1 when there was one."""
    options = _options()
    failures = 0
    with Server(options.server) as server:
        wire = Wire(str(server.socket_path))
        explorer = Explorer(wire, options.mutant, plain=server.version < (7, 0))
        for fault in options.fault or CLASSES:
            failures += _explore(explorer, fault, range(options.seed, options.seed + options.runs), options)
        wire.close()
    return 1 if failures else 0


def _explore(explorer: Explorer, fault: str, seeds: range, options: argparse.Namespace) -> int:
    began, failed = monotonic(), []
    for seed in seeds:
        run = explorer.run(seed, fault)
        if options.story and not run.violation:
            say(str(run))
        if run.violation:
            failed.append(run)
            if len(failed) >= options.failures:
                break
    say(f"{fault:9} {seed - seeds.start + 1:4} runs {monotonic() - began:6.1f} s  {len(failed)} failed")
    for run in failed:
        short = run if options.whole else shrunk(explorer, run)
        say(f"\nseed {run.seed}: {len(run.steps)} steps, shrunk to {len(short.steps)}\n{short}\n")
    return len(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model.explorer", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=1, help="seeds to run, from the first on")
    parser.add_argument("--fault", action="append", choices=list(CLASSES), help="a class of faults (default: each)")
    parser.add_argument("--mutant", default="", choices=list(MUTANTS), help="run a broken variant")
    parser.add_argument("--server", default=binaries.EMBEDDED, choices=binaries.SERVERS)
    parser.add_argument("--failures", type=int, default=1, help="go on after a failure, up to this many a class")
    parser.add_argument("--story", action="store_true", help="tell also the runs that are clean")
    parser.add_argument("--whole", action="store_true", help="do not shrink")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
