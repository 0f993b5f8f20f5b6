"""What a worker serves."""

from collections.abc import Iterable

__all__ = ["Served"]


class Served:
    """The shards that this run serves: all of them, unless an assignment has its word."""

    def __init__(self) -> None:
        self._shards: frozenset[int] | None = None

    def __contains__(self, shard: int) -> bool:
        return self._shards is None or shard in self._shards

    def of(self, shards: int) -> Iterable[int]:
        """Return which of so many shards are served."""
        return range(shards) if self._shards is None else self._shards

    def become(self, shards: frozenset[int]) -> bool:
        """Serve these shards from now on; answer whether that is a change."""
        changed = shards != self._shards
        self._shards = shards
        return changed
