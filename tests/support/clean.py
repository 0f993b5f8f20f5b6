"""`verify`, as every integration, fault and load test ends with it."""

from uno.event_bus.dead_letter.store.browse import Verified, verify
from uno.event_bus.dead_letter.store.shard import Shard


async def verified(shard: Shard) -> Verified:
    """Walk the shard to its end: all violations, and drift and waiting as they were at the last step."""
    violations: list[tuple[str, str, str]] = []
    cursor = b""
    while True:
        part = await verify(shard, cursor)
        violations += part.violations
        cursor = part.cursor
        if not cursor:
            return Verified(cursor, violations, part.drift, part.waiting)


async def assert_clean(*shards: Shard) -> None:
    """Assert that the shards break no invariant and that every captured letter is accounted for.

    Entries of strangers are booked when the mark passes them: until then they may only stand among the waiting.
    """
    for shard in shards:
        found = await verified(shard)
        assert found.violations == [], f"{shard} breaks its invariants"
        assert -found.waiting <= found.drift <= 0, f"{shard} has lost or gained letters: {found}"
