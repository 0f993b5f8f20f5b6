"""layout: tags that never change, and shards spread evenly over slots and nodes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from uno.event_bus.dead_letter.store.layout import SHARD_KEYS, queue_key, shard_key, shard_tag, slot_of

QUEUES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("queue", "shard", "tag"),
    [
        ("default", 0, "default:0.270"),
        ("default", 1, "default:1.25"),
        ("orders", 0, "orders:0.19"),
        ("orders", 255, "orders:255.307"),
        ("a.b-c", 7, "a.b-c:7.276"),
    ],
)
def test_tags_are_what_they_always_were(queue: str, shard: int, tag: str) -> None:
    """Letters are stored under them: a change would lose every queue there is."""
    assert shard_tag(queue, shard) == tag


@given(QUEUES, st.integers(0, 4095), st.sampled_from(sorted(SHARD_KEYS)))
def test_all_keys_of_a_shard_are_in_the_slot_that_redis_computes(queue: str, shard: int, name: str) -> None:
    """redis-py's own CRC agrees with ours, and the hash tag is all that counts."""
    assert key_slot(shard_key(queue, shard, name).encode()) == slot_of(shard_tag(queue, shard))


@given(QUEUES, st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256]))
def test_any_first_shards_are_spread_evenly_over_the_slots(queue: str, count: int) -> None:
    """Each of n shards is in another n-th of the slots, so growth keeps the spread."""
    assert {slot_of(shard_tag(queue, shard)) * count // 16_384 for shard in range(count)} == set(range(count))


@pytest.mark.parametrize("nodes", range(3, 13))
@pytest.mark.parametrize("shards", [16, 32, 64])
def test_shards_land_evenly_on_the_primaries_of_a_cluster(nodes: int, shards: int) -> None:
    """As evenly as whole shards can: 16 of them land 5 or 6 on each of three primaries, 2 or 3 on seven."""
    spread = Counter(slot_of(shard_tag("default", shard)) * nodes // 16_384 for shard in range(shards))
    assert set(spread.values()) <= {shards // nodes, -(-shards // nodes)}
    assert len(spread) == nodes


def test_a_tag_depends_on_queue_and_index_alone() -> None:
    """There is no count of shards in it: growing renames nothing."""
    tags = [shard_tag("q", shard) for shard in range(300)]
    assert len(set(tags)) == 300
    assert [shard_tag("q", shard) for shard in range(300)] == tags


def test_the_layout_record_has_a_key_of_the_queue() -> None:
    """Its tag is the queue's name."""
    assert queue_key("orders", "layout") == "dlq:{orders}:layout"
