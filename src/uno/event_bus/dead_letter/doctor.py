"""Is this queue fit to work: does every shard answer, are letters safe here, does the layout fit?"""

from dataclasses import dataclass
from time import perf_counter
from typing import Final

from uno.event_bus.dead_letter.errors import DeadLetterError
from uno.event_bus.dead_letter.spool.folder import SpoolStats
from uno.event_bus.dead_letter.store import browse
from uno.event_bus.dead_letter.store.layout_record import Layout
from uno.event_bus.dead_letter.store.node import Node
from uno.event_bus.dead_letter.store.server import ServerFacts, read_facts
from uno.event_bus.dead_letter.store.shard import Shard
from uno.event_bus.dead_letter.store.store import Store

__all__ = ["Finding", "examine", "examine_spool"]

FULL_AT: Final = 0.9
"""Share of `maxmemory`, or of the spool's bytes, from which captures may soon be refused."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    ok: bool
    detail: str


async def examine(store: Store) -> list[Finding]:
    """Return what was found on an open store; it is fit for work when every finding is ok.

    That it is open already says that the server is not too old, and that layout and protocol fit.
    """
    found = [finding for node in store.topology.primaries for finding in await _server(node)]
    return [*found, _layout(store.layout), *[await _shard(shard) for shard in store.shards]]


async def _server(node: Node) -> list[Finding]:
    try:
        facts = await read_facts(node)
    except DeadLetterError as error:
        return [Finding("server", False, str(error))]
    seen = f"{facts.name} {facts.version or '(version hidden)'} at {node.target.name}"
    return [Finding("server", True, seen), _eviction(facts), _memory(facts)]


def _layout(layout: Layout) -> Finding:
    lease_s = layout.lease_ms / 1000
    detail = f"format {layout.format}, {layout.shards} shards, leases of {lease_s:g} s, epoch {layout.epoch}"
    return Finding("layout", True, detail)


def _eviction(facts: ServerFacts) -> Finding:
    if facts.may_evict:
        detail = f"{facts.eviction_policy} deletes whole streams of letters when memory is full: set noeviction"
        return Finding("eviction", False, detail)
    return Finding("eviction", True, facts.eviction_policy or "hidden by the server; it must be noeviction")


def _memory(facts: ServerFacts) -> Finding:
    used = f"{facts.used_memory / 2**20:,.0f} MiB used"
    if not facts.maxmemory:
        return Finding("memory", True, f"{used}, no maxmemory")
    share = facts.used_memory / facts.maxmemory
    detail = f"{used}, {share:.0%} of maxmemory"
    return Finding("memory", True, detail if share < FULL_AT else f"{detail}: captures will soon be refused")


async def _shard(shard: Shard) -> Finding:
    began = perf_counter()
    try:
        found = await browse.stats(shard)
    except DeadLetterError as error:
        return Finding(f"shard {shard.index}", False, str(error))
    took_ms = (perf_counter() - began) * 1000
    return Finding(f"shard {shard.index}", True, f"{found['open']} letters, answered in {took_ms:.1f} ms")


def examine_spool(directory: str, found: SpoolStats | None) -> Finding:
    """Return what was found in the spool; None: its disk did not tell."""
    if found is None:
        return Finding("spool", False, f"{directory} cannot be read")
    share = found.bytes / found.max_bytes
    since = "" if found.oldest_age_s is None else f", the oldest for {found.oldest_age_s:,.0f} s"
    detail = f"{found.letters} letters wait in {found.directory}{since}; {share:.0%} of spool_max_bytes"
    full = share >= FULL_AT
    return Finding("spool", not full, f"{detail}: captures will soon be refused" if full else detail)
