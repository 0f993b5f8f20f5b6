"""A segment: one file of spooled letters, which grows to its end and is removed when all of them are sent.

All methods block on the disk and raise `OSError`; one thread at a time may call them.
"""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_bytes
from typing import Final, Self

from uno.event_bus.dead_letter.spool.disk import sync_directory, write_all
from uno.event_bus.dead_letter.spool.owners import OWNER
from uno.event_bus.dead_letter.spool.record import HEADER_BYTES, MAGIC, STATE_AT, Packed, Record, State, parse

__all__ = ["SEGMENT", "OtherVersion", "Segment", "segment_name"]

logger = logging.getLogger(__name__)

SEGMENT: Final = re.compile(rf"({OWNER})\.\d{{6}}\.spool")


class OtherVersion(Exception):
    """Raised for a segment that another version of the engine has written."""


def segment_name(owner: str, number: int) -> str:
    """Return the name of an owner's file; names sort as the segments were made."""
    return f"{owner}.{number:06d}.spool"


@dataclass(slots=True, eq=False)
class Segment:
    """One file of letters that this process answers for."""

    owner: str
    path: str
    header: bytes
    size: int
    """Bytes that are on disk for certain."""
    letters: int
    """Letters that are not sent."""
    homes: set[int] | None
    """Home shards of those, perhaps of more; without those that Redis refuses for good. None: not known."""
    damaged: bool = False
    """Kept when all else is sent, for somebody to look at."""

    @classmethod
    def begin(cls, owner: str, path: str) -> tuple[int, Self]:
        """Make an empty one, on disk with its name; return the descriptor to append by, too."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        header = MAGIC + token_bytes(HEADER_BYTES - len(MAGIC))
        try:
            write_all(fd, header, 0)
            os.fsync(fd)
            sync_directory(os.path.dirname(path))
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)
            raise
        return fd, cls(owner, path, header, HEADER_BYTES, 0, set())

    @classmethod
    def adopt(cls, owner: str, path: str) -> Self:
        """Read one that a dead owner has left. Raises `OtherVersion`."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        with open(fd, "rb+") as file:
            data = file.read()
            if not MAGIC.startswith(data[: len(MAGIC)]):
                raise OtherVersion
            found = parse(data)
            if found.end < len(data):
                logger.warning("spool %s: the last %d bytes are torn and cut off", path, len(data) - found.end)
                file.truncate(found.end)
            if found.damaged:
                logger.error("spool %s: %d bytes are damaged; the file is kept as .damaged", path, found.damaged)
            # The owner may have died before its own fsync: what we read is what the disk has from here on.
            os.fsync(fd)
        damaged = found.damaged > 0
        return cls(owner, path, data[:HEADER_BYTES], found.end, len(found.records), None, damaged)

    def write(self, fd: int, records: Sequence[Packed]) -> int:
        """Append records, and have them on disk; return the size then, which `extend` takes."""
        data = b"".join(record.record(self.header) for record in records)
        write_all(fd, data, self.size)
        os.fsync(fd)
        return self.size + len(data)

    def extend(self, size: int, records: Sequence[Packed]) -> None:
        """Count what `write` wrote as there."""
        self.size = size
        self.letters += len(records)
        for record in records:
            if record.home is None:
                self.homes = None
            elif self.homes is not None:
                self.homes.add(record.home)

    def cut_back(self) -> None:
        """Take back what a write that failed has left behind the last letter, on the disk too."""
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.ftruncate(fd, self.size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def load(self) -> list[Record]:
        """Return the letters that are not sent. Raises `FileNotFoundError`."""
        with open(self.path, "rb") as file:
            found = parse(file.read(self.size))
        self.letters = len(found.records)
        self.damaged = self.damaged or found.damaged > 0 or found.end < self.size
        return found.records

    def mark_tried(self, offsets: Sequence[int]) -> None:
        """Note, on disk when this returns, that a try to send these waiting letters begins."""
        try:
            self._write_states(offsets, State.TRIED, sync=True)
        except OSError:
            # After a failed fsync the kernel may call the pages clean. Written once more they are not, and the next
            # try's fsync tells the truth again.
            with suppress(OSError):
                self._write_states(offsets, State.WAITING)
            raise

    def mark_waiting(self, offsets: Iterable[int]) -> None:
        """Note that the try has certainly captured none of these. A power cut may undo it, which costs nothing."""
        self._write_states(offsets, State.WAITING)

    def mark_sent(self, offsets: Sequence[int]) -> None:
        """Note that these are sent, each at most once. The next mark's fsync, or the file's end, has it on disk."""
        self._write_states(offsets, State.SENT)
        self.letters -= len(offsets)

    def _write_states(self, offsets: Iterable[int], state: State, *, sync: bool = False) -> None:
        fd = os.open(self.path, os.O_RDWR)
        try:
            for offset in offsets:
                os.pwrite(fd, bytes([state]), offset + STATE_AT)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def end(self) -> None:
        """Remove the file, whose letters are all sent; a damaged one is set aside."""
        with suppress(FileNotFoundError):
            if self.damaged:
                os.rename(self.path, f"{self.path}.damaged")
            else:
                os.unlink(self.path)
