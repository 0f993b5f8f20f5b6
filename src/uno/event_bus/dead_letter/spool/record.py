"""Records of a spool's segment file: how a letter stands on disk, and what of a file is complete.

A segment is ``MAGIC``, a random salt, and records, one after another: a head (mark, state, captured-at, length,
CRC-32) and a body (the letter, as msgpack). The checksum covers the salt and all of the record but mark and state:
the state alone is written again, in place, one byte. A process that dies while it writes leaves a torn record at the
end, which was never acknowledged. Behind bytes that are damaged the next mark with a right checksum is looked for;
the salt keeps the bytes of an event from passing for a record.

A reader that does not know a field of the letter would send it without: so each new field gets a new ``MAGIC``, and
segments of a version that is not known are left to processes that know it.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from uno.event_bus.dead_letter.letter import NewLetter

__all__ = ["HEADER_BYTES", "MAGIC", "STATE_AT", "Packed", "Parsed", "Record", "State", "heads", "pack", "parse"]

MAGIC: Final = b"UNOSPL1\n"
"""First bytes of a segment: what it is, and its version."""

HEADER_BYTES: Final = len(MAGIC) + 4
"""``MAGIC`` and the salt."""

_MARK: Final = b"\xf5ltr"  # 0xF5 stands in no UTF-8 text
_HEAD: Final = Struct(">4sBQII")
_SUMMED: Final = Struct(">QI")
STATE_AT: Final = len(_MARK)
"""Where a record's state stands, bytes from its beginning."""


class State(IntEnum):
    """How far a spooled letter is on its way into Redis."""

    WAITING = 1
    """Certainly not captured."""
    TRIED = 2
    """A try began whose outcome nobody has written down: it may have been captured."""
    SENT = 3


class Packed(NamedTuple):
    """A letter that is ready to be written."""

    captured_at_ms: int
    state: State
    body: bytes
    home: int | None
    """Its home shard, which is not written; None: not known."""

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return _HEAD.size + len(self.body)

    def record(self, header: bytes) -> bytes:
        """Return the record, for a segment that begins with this header."""
        checksum = _sum(header, self.captured_at_ms, self.body)
        return _HEAD.pack(_MARK, self.state, self.captured_at_ms, len(self.body), checksum) + self.body


@dataclass(slots=True)
class Record:
    """One letter of a segment."""

    offset: int
    size: int
    """Bytes on disk."""
    state: State
    captured_at_ms: int
    """When the caller captured it, by the clock of this machine, Unix time, ms."""
    letter: NewLetter

    def to_send(self, now_ms: int) -> NewLetter:
        """Return the letter with what is left of its delay; a clock that was set back makes it no longer."""
        passed_ms = max(0, now_ms - self.captured_at_ms)
        return replace(self.letter, delay_ms=max(0, self.letter.delay_ms - passed_ms))


class Parsed(NamedTuple):
    """What the bytes of a segment hold."""

    records: list[Record]
    end: int
    """Where the last complete record, or damage, ends; what follows is torn."""
    damaged: int
    """Bytes before it that are no record, or none that can be read."""


def pack(letter: NewLetter, captured_at_ms: int, state: State, home: int | None = None) -> Packed:
    """Return a letter ready to be written; one that does not say when it failed has failed when it was captured."""
    if letter.failed_at_ms is None:
        letter = replace(letter, failed_at_ms=captured_at_ms)
    return Packed(captured_at_ms, state, msgspec.msgpack.encode(letter), home)


def _sum(header: bytes, captured_at_ms: int, body: bytes) -> int:
    return crc32(body, crc32(_SUMMED.pack(captured_at_ms, len(body)), crc32(header)))


def parse(data: bytes) -> Parsed:
    """Return every complete record that is not sent, whatever stands between them. Never raises."""
    header, records, damaged = data[:HEADER_BYTES], list[Record](), 0
    at = end = len(header)
    while (at := data.find(_MARK, at)) >= 0:
        body = _body(header, data, at)
        if body is None:
            at += 1
            continue
        damaged += at - end
        end = at + _HEAD.size + len(body)
        try:
            record = _record(data, at, body)
        except msgspec.MsgspecError:
            damaged += end - at
        else:
            records += [record] if record is not None else []
        at = end
    if not _is_torn(data[end:]):
        damaged += len(data) - end
        end = len(data)
    return Parsed(records, end, damaged)


def _is_torn(tail: bytes) -> bool:
    """Whether bytes may be what is left of a write that did not come to its end, and so was never acknowledged.

    That is the beginning of a record, or room that a file system made for one and never filled.
    """
    if not tail.strip(b"\0"):
        return True
    if len(tail) < _HEAD.size:
        return _MARK.startswith(tail[: len(_MARK)])
    mark, _, _, length, _ = _HEAD.unpack_from(tail)
    return bool(mark == _MARK and _HEAD.size + length > len(tail))


def _body(header: bytes, data: bytes, at: int) -> bytes | None:
    """Return the body of the record that begins here; None when none does, or it is not whole."""
    if at + _HEAD.size > len(data):
        return None
    _, _, captured_at_ms, length, checksum = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    return body if len(body) == length and _sum(header, captured_at_ms, body) == checksum else None


def _record(data: bytes, at: int, body: bytes) -> Record | None:
    """Return a record; None when its letter is sent. Raises `msgspec.MsgspecError`."""
    _, state, captured_at_ms, _, _ = _HEAD.unpack_from(data, at)
    if state == State.SENT:
        return None
    # A state that is none: nobody knows any more, which is what TRIED means.
    known = State.WAITING if state == State.WAITING else State.TRIED
    return Record(at, _HEAD.size + len(body), known, captured_at_ms, msgspec.msgpack.decode(body, type=NewLetter))


def heads(data: bytes) -> list[int]:
    """Return when each letter that is not sent was captured, ms: from the heads alone, without the checksums."""
    found: list[int] = []
    at = HEADER_BYTES
    while at + _HEAD.size <= len(data):
        mark, state, captured_at_ms, length, _ = _HEAD.unpack_from(data, at)
        at += _HEAD.size + length
        if mark != _MARK or at > len(data):
            break
        if state != State.SENT:
            found.append(captured_at_ms)
    return found
