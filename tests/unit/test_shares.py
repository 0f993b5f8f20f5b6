"""shares: every worker computes the same split, nobody is idle, no shard is left alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uno.event_bus.dead_letter.worker.shares import shares

NAMES = st.sets(st.text("abc0-", min_size=1, max_size=8), min_size=1, max_size=40)
SHARDS = st.sampled_from([1, 2, 4, 8, 16, 64])


@given(NAMES, SHARDS)
def test_every_shard_has_a_worker_and_every_worker_a_shard(workers: set[str], shards: int) -> None:
    """However many there are of each; loads differ by the bound at most."""
    split = shares(workers, shards)
    assert split.keys() == workers
    assert set().union(*split.values()) == set(range(shards))
    assert all(split.values())
    loads = [len(served) for served in split.values()]
    assert max(loads) - min(loads) <= 1
    for shard in range(shards):
        crew = sum(shard in served for served in split.values())
        assert crew == 1 if len(workers) <= shards else 1 <= crew <= -(-len(workers) // shards)


@given(NAMES, SHARDS, st.randoms())
def test_the_order_in_which_workers_are_named_changes_nothing(
    workers: set[str], shards: int, chance: random.Random
) -> None:
    """Each worker computes it for itself."""
    names = list(workers)
    chance.shuffle(names)
    assert shares(names, shards) == shares(sorted(workers), shards)


@pytest.mark.parametrize("workers", [2, 3, 5, 8, 16, 31])
def test_most_shards_stay_where_they_are_when_a_worker_goes(workers: int) -> None:
    """Of 64: those of the one that went, and about as many again that make room for them."""
    names = [f"host-{n}-{n:08x}" for n in range(workers)]
    before, after = shares(names, 64), shares(names[1:], 64)
    moved = sum(len(after[name] - before[name]) for name in names[1:])
    assert moved <= 3 * -(-64 // workers) + 2


def test_nobody_serves_nothing() -> None:
    """No worker: no split."""
    assert shares([], 4) == {}
