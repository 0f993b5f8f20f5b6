"""From what processes and servers have told to the figures of the report; pure functions."""

from collections.abc import Mapping, Sequence
from typing import Final

from uno.event_bus.dead_letter.bench.bitset import TICK_S, BitSet, longest_gap_s
from uno.event_bus.dead_letter.bench.histogram import Histogram
from uno.event_bus.dead_letter.bench.messages import Produced, Worked
from uno.event_bus.dead_letter.bench.nodes import NodeState, cpu_used_s
from uno.event_bus.dead_letter.bench.options import RETRY_S
from uno.event_bus.dead_letter.bench.outage import Outage
from uno.event_bus.dead_letter.bench.report import Failover, Latency, NodeFigures, ProcessFigures, Setup

__all__ = [
    "Tally",
    "balance",
    "failover_of",
    "latency_of",
    "letters_of_nodes",
    "node_figures",
    "notes_on",
    "process_figures",
    "rate",
]

BUSY: Final = 0.9
"""Share of a core from which a process was the bound."""

SHORT_S: Final = 2.0

SHARDS_A_PRIMARY: Final = 4
"""From so many on the load of primaries differs little."""


class Tally:
    """What all producers and all workers have seen, put together."""

    def __init__(self, produced: Sequence[Produced], worked: Sequence[Worked]) -> None:
        self.produced, self.worked = produced, worked
        self.acknowledged, self.captures = _union(produced, "acknowledged"), _union(produced, "ticks")
        self.done, self.starts = _union(worked, "done"), _union(worked, "ticks")
        self.calls = _merged([each.calls for each in produced])
        self.waits = _merged([each.waits for each in worked])
        self.runs = sum(each.runs for each in worked)
        self.errors: dict[str, int] = {}
        for each in produced:
            for code, calls in each.errors.items():
                self.errors[code] = self.errors.get(code, 0) + calls
        self.began_s = min(each.began_s for each in produced)
        self.captured_s = max(each.ended_s for each in produced)
        self.first_start_s = min((each.began_s for each in worked if each.runs), default=self.began_s)
        self.last_start_s = max((each.ended_s for each in worked if each.runs), default=self.began_s)

    @property
    def seconds(self) -> float:
        """From the first capture to the last of all that happened."""
        return max(self.captured_s, self.last_start_s) - self.began_s


def _union(told: Sequence[Produced] | Sequence[Worked], name: str) -> BitSet:
    bits = BitSet()
    for each in told:
        bits |= BitSet(getattr(each, name))
    return bits


def _merged(histograms: Sequence[Histogram]) -> Histogram:
    merged = Histogram()
    for each in histograms:
        merged.merge(each)
    return merged


def rate(letters: int, seconds: float) -> float | None:
    """Return letters a second; None when there was no time."""
    return round(letters / seconds, 1) if seconds > 0 else None


def latency_of(durations: Histogram) -> Latency:
    """Return the percentiles of a histogram."""
    p50, p95, p99 = (_ms(durations.percentile(percent)) for percent in (50, 95, 99))
    return Latency(durations.count, p50, p95, p99, _ms(durations.longest_s if durations.count else None))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def balance(letters: Sequence[int]) -> float | None:
    """Return the most ÷ the mean; None of nothing."""
    return round(max(letters) * len(letters) / sum(letters), 3) if sum(letters) else None


# --- servers ---------------------------------------------------------------------------------------------


def letters_of_nodes(
    captured: Sequence[int], before: Sequence[str], after: Sequence[str], outage: Outage | None
) -> dict[str, int]:
    """Return address → letters captured there, of letters by shard and the node that had it before and after.

    What a killed node had captured by then is its own; without knowing when a shard moved, all is the last node's.
    """
    then = outage.captured_by_then if outage is not None else {}
    found: dict[str, int] = {}
    for shard, count in enumerate(captured):
        earlier = min(then.get(shard, 0), count)
        found[before[shard]] = found.get(before[shard], 0) + earlier
        found[after[shard]] = found.get(after[shard], 0) + count - earlier
    return found


def node_figures(
    looks: Sequence[Mapping[str, NodeState]], letters: Mapping[str, int], seconds: float
) -> list[NodeFigures]:
    """Return the figures of all nodes, of several looks at them and of the letters that they captured."""
    states = {address: [look.get(address) for look in looks] for look in looks for address in look}
    used = {address: cpu_used_s(seen) for address, seen in states.items()}
    total = sum(each or 0.0 for each in used.values())
    found = []
    for address, seen in states.items():
        cpu_s, known = used[address], next(state for state in seen if state is not None)
        found.append(
            NodeFigures(
                address=address,
                role=seen[-1].role if seen[-1] is not None else "away",
                role_before=known.role,
                server=known.server,
                letters=letters.get(address, 0),
                cpu_seconds=None if cpu_s is None else round(cpu_s, 3),
                cpu_share=round(cpu_s / total, 4) if cpu_s is not None and total else None,
                cpu_of_a_core=round(cpu_s / seconds, 4) if cpu_s is not None and seconds else None,
            )
        )
    return found


def failover_of(tally: Tally, outage: Outage | None, origin_s: float) -> Failover | None:
    """Return what an outage cost; None without one."""
    if outage is None:
        return None
    tick = int((outage.killed_s - origin_s) / TICK_S)
    return Failover(
        node=outage.address,
        pid=outage.pid,
        shards=outage.shards,
        killed_after_s=round(outage.killed_s - tally.began_s, 3),
        capture_gap_s=round(longest_gap_s(tally.captures, tick), 3),
        start_gap_s=round(longest_gap_s(tally.starts, tick), 3),
        answered_after_s=round(outage.answered_s - outage.killed_s, 3),
        restarted_after_s=round(outage.restarted_s - outage.killed_s, 3),
    )


# --- processes -------------------------------------------------------------------------------------------


def process_figures(tally: Tally) -> list[ProcessFigures]:
    """Return the figures of all processes, producers first.

    A producer's share of a core is that of its own time, as it ends early; a worker's is that of the whole.
    """
    rows = [("producer", each.calls.count, each.cpu_s, each.ended_s - each.began_s) for each in tally.produced]
    rows += [("worker", each.runs, each.cpu_s, tally.seconds) for each in tally.worked]
    return [
        ProcessFigures(role, letters, round(cpu_s, 3), round(cpu_s / elapsed_s, 4) if elapsed_s else 0.0)
        for role, letters, cpu_s, elapsed_s in rows
    ]


def notes_on(
    setup: Setup, tally: Tally, processes: Sequence[ProcessFigures], nodes: Sequence[NodeFigures], failed_over: bool
) -> list[str]:
    """Return what has to be known before the figures are believed."""
    if tally.seconds < SHORT_S:
        return [f"{tally.seconds:.1f} s are too short for rates to be trusted: say more --letters"]
    notes = _bounds(setup, tally, processes, nodes)
    kept_up = tally.last_start_s - tally.captured_s < max(2 * RETRY_S, 0.05 * tally.seconds)
    if failed_over:
        notes.append("rates, percentiles and maxima include the outage")
    elif kept_up:
        notes.append(
            "the workers kept up, so the processing rate is that of the captures; what the workers can do shows with "
            f"--producers {setup.producers * 2}"
        )
    if setup.primaries > 1 and setup.shards < SHARDS_A_PRIMARY * setup.primaries:
        notes.append(
            f"{setup.shards} shards cannot be even on {setup.primaries} primaries: "
            f"try --shards {_power_of_two(SHARDS_A_PRIMARY * setup.primaries)}"
        )
    return notes


def _bounds(setup: Setup, tally: Tally, processes: Sequence[ProcessFigures], nodes: Sequence[NodeFigures]) -> list[str]:
    """Return what kept the rates from being higher, where that was not the servers."""
    notes = []
    producing = max((each.cpu_of_a_core for each in processes if each.role == "producer"), default=0.0)
    working = max((each.cpu_of_a_core for each in processes if each.role == "worker"), default=0.0)
    used_s = sum(each.cpu_seconds for each in processes) + sum(each.cpu_seconds or 0.0 for each in nodes)
    if producing >= BUSY:
        notes.append(
            f"the producers were the bound of the capture rate: {producing:.0%} of a core; the servers may take more "
            f"from --producers {setup.producers * 2}"
        )
    if working >= BUSY:
        notes.append(f"the workers were the bound of the processing rate: {working:.0%} of a core; try more --workers")
    if setup.is_shared and tally.seconds and used_s / tally.seconds >= BUSY * setup.cores:
        notes.append(
            f"this machine was the bound: servers, workers and producers share its {setup.cores} cores; on machines "
            "of their own they do more"
        )
    return notes


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
