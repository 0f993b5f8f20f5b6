"""Letters in a worker's hands, and a worker's session, made without a store."""

from time import monotonic
from types import SimpleNamespace
from typing import Any, override

from uno.event_bus.dead_letter import DeadLetterConfig
from uno.event_bus.dead_letter.handlers import Handlers
from uno.event_bus.dead_letter.letter import Lease, Letter, LetterState
from uno.event_bus.dead_letter.retry import from_config
from uno.event_bus.dead_letter.telemetry.recorder import Recorder
from uno.event_bus.dead_letter.worker.holdings import Held
from uno.event_bus.dead_letter.worker.session import Session


def held(n: int = 0, *, token: int = 1, lease_s: float = 60.0, shard: Any = None, **fields: bytes) -> Held:
    """Letter number n, leased to `w`."""
    lease = Lease("w", token, monotonic() + lease_s)
    values = {b"v": b"1", b"type": b"t", b"payload": b"{}"} | {name.encode(): value for name, value in fields.items()}
    letter = Letter.from_fields(f"0-1-{n}", values, state=LetterState.LEASED, lease=lease)
    return Held(letter, lease, shard)


class Records(Recorder):
    """What a worker has recorded, by the name of the hook."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def _note(self, name: str, number: int) -> None:
        self.of.setdefault(name, []).append(number)

    @override
    def attempted(self, queue: str, letter: Letter, duration_s: float, cause: str) -> None:
        self._note(f"attempted {cause}".strip(), letter.attempt)

    @override
    def lease_lost(self, queue: str, letters: int) -> None:
        self._note("lease_lost", letters)

    @override
    def stale_settles(self, queue: str, letters: int) -> None:
        self._note("stale_settles", letters)

    @override
    def unknown_settles(self, queue: str, letters: int) -> None:
        self._note("unknown_settles", letters)

    @override
    def evicting_servers(self, queue: str, servers: int) -> None:
        self._note("evicting_servers", servers)

    @override
    def threads_left(self, queue: str, threads: int) -> None:
        self._note("threads_left", threads)

    @override
    def store_failed(self, queue: str) -> None:
        self._note("store_failed", 1)


def session(*shards: Any, lease_s: float = 60.0, recorder: Recorder | None = None, **settings: Any) -> Session:
    """A session over shards that a test makes up."""
    config = DeadLetterConfig(**settings)
    policy = from_config(config)
    store: Any = SimpleNamespace(shards=list(shards), layout=SimpleNamespace(lease_ms=int(lease_s * 1000)))
    return Session(store, config, Handlers(), lambda: policy, recorder or Records(), [])
