"""What every process of one benchmark must agree on: the queue, its settings, and the letters."""

from dataclasses import fields
from hashlib import blake2b
from typing import Any, Final, Self

import msgspec

from uno.event_bus.dead_letter.bench.options import Options
from uno.event_bus.dead_letter.config import DeadLetterConfig

__all__ = ["TYPE", "Plan"]

TYPE: Final = "bench"
"""Type of the events."""


class Plan(msgspec.Struct, frozen=True):
    """The queue, the letters, and which of them fail: decided by seed and number alone, so all processes agree."""

    url: str
    settings: dict[str, Any]
    letters: int
    payload_bytes: int
    fail_rate: float
    seed: int
    producers: int
    origin_s: float
    """Ticks are counted from here: the machine's monotonic clock, which its processes share."""
    goes_on: bool
    """Producers go on past their share until they are told to finish."""
    number: int = 0
    """Of the process, among those of its kind."""

    @classmethod
    def of(cls, url: str, config: DeadLetterConfig, options: Options, *, origin_s: float) -> Self:
        """Return the plan of these options on a server."""
        return cls(
            url=url,
            settings={each.name: getattr(config, each.name) for each in fields(config)},
            letters=options.letters,
            payload_bytes=options.payload_bytes,
            fail_rate=options.fail_rate,
            seed=options.seed,
            producers=options.producers,
            origin_s=origin_s,
            goes_on=options.kill_primary,
        )

    def config(self) -> DeadLetterConfig:
        """Return the queue's settings."""
        return DeadLetterConfig(**self.settings)

    def event(self, number: int) -> dict[str, Any]:
        """Return the event of this number, of so many bytes as JSON."""
        text = str(number)
        return {"n": number, "pad": "x" * (self.payload_bytes - len('{"n":,"pad":""}') - len(text))}

    def event_id(self, number: int) -> str:
        """Return the event's id, which also says which shard it goes to."""
        return f"{self.seed}-{number}"

    def number_of(self, event_id: str) -> int:
        """Return the number of an event's id."""
        return int(event_id.rpartition("-")[2])

    def fails(self, number: int) -> bool:
        """Say whether the first attempt of this letter fails."""
        drawn = blake2b(self.event_id(number).encode(), digest_size=4, person=b"fails").digest()
        return int.from_bytes(drawn) < self.fail_rate * 2**32
