"""The history of a letter: its last attempts, packed by workers and opaque to Lua."""

from typing import Final, Self

import msgspec

__all__ = ["MESSAGE_BYTES", "Attempt", "History"]

HISTORY_LENGTH: Final = 20
"""Attempts that are kept: the last ones."""

PACKED_BYTES: Final = 2048
"""Most bytes of a packed history; the oldest attempts go first."""

MESSAGE_BYTES: Final = 120
"""Longest error message that an attempt of the history keeps, bytes of UTF-8."""


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One run of a handler on a letter, as the history keeps it."""

    started_ms: int
    """Unix time, ms."""
    worker: str
    """Consumer name of the worker that ran it."""
    duration_s: float
    error_type: str = ""
    """Empty when the handler asked for another try by itself."""
    message: str = ""
    """At most 120 bytes."""


class History(msgspec.Struct, array_like=True):
    """A letter's last attempts and what the next worker must know; opaque to Lua, at most 2 KiB packed."""

    attempts: list[Attempt] = []
    trace: dict[str, str] = {}
    """Trace context (W3C headers) of the last attempt."""
    unhandled_since_ms: int = 0
    """When a worker first found no handler for it; 0 when never."""

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the history of these bytes; an empty one when they are empty or not ours."""
        if not packed:
            return cls([], {})
        try:
            return msgspec.msgpack.decode(packed, type=cls)
        except msgspec.MsgspecError:
            return cls([], {})

    def pack(self) -> bytes:
        """Return the bytes to store: the last 20 attempts, fewer if they would pass 2 KiB."""
        kept = History(self.attempts[-HISTORY_LENGTH:], self.trace, self.unhandled_since_ms)
        packed = msgspec.msgpack.encode(kept)
        while len(packed) > PACKED_BYTES and kept.attempts:
            del kept.attempts[0]
            packed = msgspec.msgpack.encode(kept)
        return packed
