"""The rows of the fault matrix, and the pairs that find most: importing this package registers them all."""

from tests.faults.rows import (
    clocks,
    damage,
    disks,
    fleet,
    hostile,
    memory,
    network,
    nodes,
    pairs,
    replicas,
    scripts,
    workers,
)

__all__ = [
    "clocks",
    "damage",
    "disks",
    "fleet",
    "hostile",
    "memory",
    "network",
    "nodes",
    "pairs",
    "replicas",
    "scripts",
    "workers",
]
