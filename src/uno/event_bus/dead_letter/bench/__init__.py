"""The benchmark: what a server or a cluster can do, measured from outside, and whether it loses a letter on the way."""

from uno.event_bus.dead_letter.bench.errors import QueueTaken
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.bench.report import Report
from uno.event_bus.dead_letter.bench.run import Watch, run_bench

__all__ = ["Options", "QueueTaken", "Report", "Watch", "run_bench"]
