"""Keys: how a queue's shards are spread over hash slots, and what each key of a shard is called.

The tag of shard i is ``{<queue>:<i>.<k>}``. Of 256 cells of 64 slots, shard i lives in the cell whose number
is i's eight lowest bits reversed; k is the smallest number >= 0 whose CRC16 falls into that cell. The tag
depends on queue and i alone, so growing renames nothing, and any first n shards are spread evenly.
"""

from binascii import crc_hqx
from functools import cache
from typing import Final

__all__ = ["FORMAT", "QUEUE_KEYS", "SHARD_KEYS", "SLOTS", "queue_key", "shard_key", "shard_tag", "slot_of"]

FORMAT: Final = 1
"""Format of the keys and records; a queue with a later one is not touched."""

SLOTS: Final = 16_384
CELLS: Final = 256

SHARD_KEYS: Final = {
    "letters": "stream",
    "meta": "hash",
    "schedule": "zset",
    "suspects": "zset",
    "held": "zset",
    "parked": "zset",
    "state": "hash",
    "history": "hash",
    "groups": "hash",
    "group_info": "hash",
    "dedupe_a": "hash",
    "dedupe_b": "hash",
    "dedupe_c": "hash",
    "holds": "hash",
    "outcomes": "hash",
    "edits": "hash",
}
"""Name and Redis type of each key of a shard; the last three are reserved."""


QUEUE_KEYS: Final = {
    "layout": "hash",
    "workers": "zset",
    "worker_info": "hash",
    "audit": "stream",
}
"""Name and Redis type of each key of a queue, beside those of its shards."""


def slot_of(tag: str) -> int:
    """Return the cluster slot of a hash tag's content: CRC16 (XMODEM) modulo 16,384."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def _cell_of_shard(shard: int) -> int:
    return int(f"{shard % CELLS:08b}"[::-1], 2)


@cache
def shard_tag(queue: str, shard: int) -> str:
    """Return the content of the shard's hash tag, without braces; about 256 CRCs the first time."""
    wanted = _cell_of_shard(shard)
    k = 0
    while slot_of(f"{queue}:{shard}.{k}") // (SLOTS // CELLS) != wanted:
        k += 1
    return f"{queue}:{shard}.{k}"


def shard_key(queue: str, shard: int, name: str) -> str:
    """Return the key ``dlq:{<queue>:<i>.<k>}:<name>``; `name` is one of `SHARD_KEYS`."""
    return f"dlq:{{{shard_tag(queue, shard)}}}:{name}"


def queue_key(queue: str, name: str) -> str:
    """Return the key ``dlq:{<queue>}:<name>`` of the queue itself; `name` is one of `QUEUE_KEYS`."""
    return f"dlq:{{{queue}}}:{name}"
