"""The reporter: from all that was seen of one benchmark to its report; pure functions."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from uno.event_bus.dead_letter.bench.bitset import BitSet
from uno.event_bus.dead_letter.bench.figures import (
    Tally,
    balance,
    failover_of,
    latency_of,
    letters_of_nodes,
    node_figures,
    notes_on,
    process_figures,
    rate,
)
from uno.event_bus.dead_letter.bench.nodes import NodeState
from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.bench.outage import Outage
from uno.event_bus.dead_letter.bench.place import Place
from uno.event_bus.dead_letter.bench.report import Books, Report, Setup
from uno.event_bus.dead_letter.books import QueueStats, VerifyReport
from uno.event_bus.dead_letter.config import DeadLetterConfig

__all__ = ["Seen", "report_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was seen of one benchmark."""

    at: str
    options: Options
    config: DeadLetterConfig
    place: Place
    origin_s: float
    """Ticks are counted from here, by the machine's monotonic clock."""
    tally: Tally
    looks: Sequence[Mapping[str, NodeState]]
    """At the nodes: before the first letter, perhaps before the kill, and after the last letter."""
    owners_before: list[str]
    owners_after: list[str]
    """Address of each shard's primary."""
    outage: Outage | None
    stats: QueueStats
    verified: VerifyReport
    still_there: BitSet
    """Numbers of the letters that the queue holds at the end."""


def report_of(seen: Seen) -> Report:
    """Return the report."""
    tally, outage = seen.tally, seen.outage
    captured = [int(row.get("captured") or 0) for row in seen.stats.by_shard]
    of_node = letters_of_nodes(captured, seen.owners_before, seen.owners_after, outage)
    nodes = node_figures(seen.looks, of_node, tally.seconds)
    setup, processes = _setup(seen), process_figures(tally)
    notes = notes_on(setup, tally, processes, nodes, failed_over=outage is not None)
    if seen.owners_before != seen.owners_after and outage is None:
        notes.append("shards have changed their nodes meanwhile; their letters are shown at the last one")
    return Report(
        setup=setup,
        seconds=round(tally.seconds, 3),
        capture_per_s=rate(len(tally.acknowledged), tally.captured_s - tally.began_s),
        processing_per_s=rate(seen.stats.totals["resolved"], tally.last_start_s - tally.first_start_s),
        capture=latency_of(tally.calls),
        due_to_start=latency_of(tally.waits),
        books=books_of(tally, seen.stats, seen.still_there),
        errors=dict(sorted(tally.errors.items())),
        nodes=nodes,
        letters_by_shard=captured,
        balance_of_shards=balance(captured),
        balance_of_nodes=balance(_by_first_owner(captured, seen)),
        failover=failover_of(tally, outage, seen.origin_s),
        processes=processes,
        verify_clean=seen.verified.clean,
        violations=[f"{each.kind} {each.letter_id} {each.where}" for each in seen.verified.violations],
        notes=notes,
    )


def books_of(tally: Tally, stats: QueueStats, still_there: BitSet) -> Books:
    """Lay the queue's totals beside the notes of producers and handlers; a loss that either side sees counts.

    The totals are blind where a letter that nobody was told of makes up for one that is gone, the handlers where a
    letter was run and then forgotten.
    """
    acknowledged, resolved, retried = len(tally.acknowledged), stats.totals["resolved"], stats.totals["retried"]
    never_run = len(tally.acknowledged - tally.done - still_there)
    return Books(
        acknowledged=acknowledged,
        captured=stats.totals["captured"],
        resolved=resolved,
        parked=stats.parked,
        open=stats.open - stats.parked,
        retried=retried,
        runs=tally.runs,
        duplicates=max(tally.runs - resolved - retried, 0),
        lost=max(acknowledged - resolved - stats.open, never_run, 0),
    )


def _by_first_owner(captured: Sequence[int], seen: Seen) -> list[int]:
    """Return the letters of each node that began as a primary, by the shards that it had then."""
    primaries = [address for address, state in seen.looks[0].items() if state.role == "primary"]
    letters = dict.fromkeys([*primaries, *seen.owners_before], 0)
    for count, address in zip(captured, seen.owners_before, strict=True):
        letters[address] += count
    return list(letters.values())


def _setup(seen: Seen) -> Setup:
    first, options, config = seen.looks[0], seen.options, seen.config
    roles = [state.role for state in first.values()]
    local = all(address.startswith(("127.", "localhost:", "::1", "/")) for address in first)
    return Setup(
        at=seen.at,
        uno=_version_of("uno-dead-letter"),
        python=platform.python_version(),
        event_loop=f"uvloop {_version_of('uvloop')}" if find_spec("uvloop") else "asyncio",
        machine=f"{platform.system()} {platform.machine()}",
        cores=os.process_cpu_count() or 1,
        kind=seen.place.kind,
        url=seen.place.name,
        servers=sorted({state.server for state in first.values()}),
        primaries=roles.count("primary"),
        replicas=roles.count("replica"),
        is_shared=seen.place.is_own or local,
        queue=config.queue,
        shards=len(seen.owners_before),
        workers=options.workers,
        producers=options.producers,
        letters=options.letters,
        payload_bytes=options.payload_bytes,
        fail_rate=options.fail_rate,
        concurrency=options.concurrency,
        durability=config.durability,
        lease_seconds=config.lease_seconds,
        seed=options.seed,
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown)"
