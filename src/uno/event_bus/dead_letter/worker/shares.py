"""Shares: which worker serves which shards, computed alike by every worker from the list of those that live.

Rendezvous hashing (Thaler & Ravishankar, 1998) with a bound: each pair of worker and shard has a number that
depends on nothing else; a shard goes to the worker with its highest number among those that still have room. So
everybody comes to the same result without a word, loads differ by one at most, and when a worker comes or goes
most shards stay where they are.
"""

from collections.abc import Collection
from hashlib import blake2b

__all__ = ["shares"]


def _number(worker: str, shard: int) -> bytes:
    return blake2b(f"{worker}\0{shard}".encode(), digest_size=8).digest()


def shares(workers: Collection[str], shards: int) -> dict[str, frozenset[int]]:
    """Return the shards of each worker, by its name.

    With no more workers than shards every shard has one worker, and loads differ by one at most. Workers beyond
    one a shard serve one shard each, at most ⌈workers ÷ shards⌉ the same one.
    """
    serves: dict[str, set[int]] = {worker: set() for worker in workers}
    if not serves or shards < 1:
        return {worker: frozenset() for worker in serves}
    room, larger = divmod(shards, len(serves))  # so many workers have one shard more than the others
    for shard in range(shards):
        free = [worker for worker, served in serves.items() if len(served) < room + (larger > 0)]
        chosen = max(free, key=lambda worker: _number(worker, shard))
        larger -= len(serves[chosen]) == room
        serves[chosen].add(shard)
    most = -(-len(serves) // shards)
    crews = dict.fromkeys(range(shards), 1)
    for worker in sorted(worker for worker, served in serves.items() if not served):
        shard = max((shard for shard, crew in crews.items() if crew < most), key=lambda n: _number(worker, n))
        crews[shard] += 1
        serves[worker].add(shard)
    return {worker: frozenset(served) for worker, served in serves.items()}
