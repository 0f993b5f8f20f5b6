"""Letters in a worker's hands, made without a store."""

from time import monotonic
from typing import Any

from uno.event_bus.dead_letter.letter import Lease, Letter, LetterState
from uno.event_bus.dead_letter.worker.holdings import Held


def held(n: int = 0, *, token: int = 1, lease_s: float = 60.0, shard: Any = None, **fields: bytes) -> Held:
    """Letter number n, leased to `w`."""
    lease = Lease("w", token, monotonic() + lease_s)
    values = {b"v": b"1", b"type": b"t", b"payload": b"{}"} | {name.encode(): value for name, value in fields.items()}
    letter = Letter.from_fields(f"0-1-{n}", values, state=LetterState.LEASED, lease=lease)
    return Held(letter, lease, shard)
