"""What the processes of a benchmark tell: JSON, one message a line."""

from typing import Final

import msgspec

from uno.event_bus.dead_letter.bench.histogram import Histogram

__all__ = ["BEGIN", "FINISH", "MESSAGES", "Failed", "Message", "Produced", "Progress", "Ready", "Worked", "written"]

BEGIN: Final = b"begin\n"
FINISH: Final = b"finish\n"
"""What a producer is told after its plan: to begin; to stop at its share, which it has passed if it `goes_on`."""


class Ready(msgspec.Struct, tag=True):
    """The process is connected and waits to begin."""


class Progress(msgspec.Struct, tag=True):
    """So many letters were acknowledged to this producer."""

    acknowledged: int


class Failed(msgspec.Struct, tag=True):
    """The process cannot go on."""

    code: str
    message: str


class Produced(msgspec.Struct, tag=True, kw_only=True):
    """All that a producer has seen."""

    acknowledged: bytes
    """Numbers of its letters that were, as a `BitSet`."""
    calls: Histogram
    """How long a capture took that was acknowledged: that one call."""
    errors: dict[str, int]
    """Code of the error → calls that raised it."""
    ticks: bytes
    """When captures were acknowledged."""
    began_s: float
    ended_s: float
    """First call, and last acknowledgement, by the machine's monotonic clock."""
    cpu_s: float


class Worked(msgspec.Struct, tag=True, kw_only=True):
    """All that a worker has seen."""

    runs: int
    done: bytes
    """Numbers of the letters whose handler worked, as a `BitSet`."""
    waits: Histogram
    """From when a letter was due for the first time to the start of its handler, by the server's clock."""
    ticks: bytes
    """When handlers were started."""
    began_s: float
    ended_s: float
    """First and last start of a handler, by the machine's monotonic clock; 0 without any."""
    cpu_s: float


type Message = Ready | Progress | Failed | Produced | Worked

MESSAGES: Final = msgspec.json.Decoder[Message](Message)

_ENCODER: Final = msgspec.json.Encoder()


def written(message: msgspec.Struct) -> bytes:
    """Return a message, or the plan, as a line."""
    return _ENCODER.encode(message) + b"\n"
