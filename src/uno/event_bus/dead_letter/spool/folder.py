"""The folder of a queue's spool, ``<spool_dir>/<queue>/``: its segments, their owners, and the bound of its bytes.

For each owner it holds a lock file ``<owner>.lock`` and segments ``<owner>.<number>.spool``, which are sent in the
order of their names. A segment that is damaged ends as ``….spool.damaged``.

All methods block on the disk and raise `OSError`; one thread at a time may call them.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import Final

from uno.event_bus.dead_letter.spool.disk import make_directory, reason, sync_directory
from uno.event_bus.dead_letter.spool.owners import LOCK, Owners
from uno.event_bus.dead_letter.spool.record import HEADER_BYTES, Packed, Record, heads
from uno.event_bus.dead_letter.spool.segment import SEGMENT, OtherVersion, Segment, segment_name

__all__ = ["Folder", "Full", "SpoolStats"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""A segment that has grown to this gets no more letters: so sent ones free their disk space soon."""


class Full(Exception):
    """Raised within the spool when its bound is reached."""


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """What waits in the spool of a queue, of all processes of this machine that share its directory."""

    directory: str
    bytes: int
    """Of the files; disk space is freed when a segment's last letter is sent, at most 4 MiB and a letter late."""
    letters: int
    oldest_ms: int | None
    """When the oldest of them was captured, by the clock of this machine, Unix time, ms."""
    max_bytes: int

    @property
    def oldest_age_s(self) -> float | None:
        """Seconds that the oldest has waited."""
        return None if self.oldest_ms is None else max(0.0, time() - self.oldest_ms / 1000)


class Folder:
    """The segments of one owner, and of those it has adopted."""

    def __init__(self, directory: str, queue: str, max_bytes: int) -> None:
        self.path = os.path.join(directory, queue)
        self._max_bytes = max_bytes
        self._owners = Owners(self.path)
        self._owner = ""
        """Our own; empty until the first letter."""
        self._segments: list[Segment] = []
        self._open: tuple[int, Segment] | None = None
        """Descriptor and segment that letters are appended to."""
        self._made = 0
        self._told: set[str] = set()

    @property
    def letters(self) -> int:
        """Letters that wait in our segments."""
        return sum(segment.letters for segment in self._segments)

    @property
    def homes(self) -> frozenset[int] | None:
        """Home shards that letters wait for, perhaps more; None: not known, so any."""
        homes = set[int]()
        for segment in self.segments():
            if segment.homes is None:
                return None
            homes |= segment.homes
        return frozenset(homes)

    # -- appending -----------------------------------------------------------------------------------

    def append(self, calls: Sequence[Sequence[Packed]]) -> list[Full | OSError | None]:
        """Write the records of several calls, with one fsync a segment; return what refused each call, if anything.

        A call is written whole or not at all: `Full`, or an `OSError` for all that were written together. An error
        with ``errno`` None says that it may be on disk all the same.
        """
        self._prepare()
        used, taken, refused = self._bytes(), list[Packed](), list[Full | OSError | None]()
        for records in calls:
            size = sum(each.size for each in records)
            size += HEADER_BYTES * (1 + size // SEGMENT_BYTES)  # of the segments that it may begin
            fits = used + size <= self._max_bytes
            refused.append(None if fits else Full())
            if fits:
                taken += records
                used += size
        try:
            self._write(taken)
        except OSError as error:
            return [why or error for why in refused]
        return refused

    def _prepare(self) -> None:
        """Make the directory and our lock, when they are not there (any more)."""
        if self._open is not None and not os.path.exists(self._open[1].path):
            self._drop(self._open[1])  # somebody has removed it: what we would write, nobody could read
        if self._owner and not os.path.exists(self._owners.path(self._owner)):
            self._owners.release(self._owner)
            self._owner = ""
        make_directory(self.path)
        self._owner = self._owner or self._owners.new()

    def _bytes(self) -> int:
        size = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # others remove theirs
                    size += entry.stat(follow_symlinks=False).st_size
        return size

    def _write(self, records: Sequence[Packed]) -> None:
        touched, written, at = list[Segment](), list[tuple[Segment, int, Sequence[Packed]]](), 0
        try:
            while at < len(records):
                fd, segment = self._open or self._begin()
                part = _part(records[at:], SEGMENT_BYTES - segment.size)
                touched.append(segment)
                written.append((segment, segment.write(fd, part), part))
                at += len(part)
                if written[-1][1] >= SEGMENT_BYTES:
                    self._seal()
        except OSError as error:
            raise self._undone(error, touched) from error
        for segment, size, part in written:
            segment.extend(size, part)

    def _begin(self) -> tuple[int, Segment]:
        self._made += 1
        path = os.path.join(self.path, segment_name(self._owner, self._made))
        self._open = Segment.begin(self._owner, path)
        self._segments.append(self._open[1])
        return self._open

    def _seal(self) -> None:
        """Append no more to the open segment."""
        if self._open is not None:
            os.close(self._open[0])
            self._open = None

    def _undone(self, error: OSError, segments: Iterable[Segment]) -> OSError:
        """Take back what a failed write has left; return the error, without ``errno`` when that failed, too."""
        self._seal()  # after a failed fsync nobody knows what the kernel still writes of this file
        try:
            for segment in segments:
                segment.cut_back()
        except OSError as second:
            return OSError(f"{reason(error)}, and what was written could not be taken back: {reason(second)}")
        with suppress(OSError):
            self.sweep()
        return error

    # -- sending -------------------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Return the segments that have letters, oldest first."""
        return sorted((each for each in self._segments if each.letters), key=lambda each: each.path)

    def load(self, segment: Segment) -> tuple[list[Record], int]:
        """Return the letters of a segment that are not sent, and its size now, by which `passed` knows it again."""
        try:
            return segment.load(), segment.size
        except FileNotFoundError:
            logger.error("spool %s was removed with %d letters that were not sent", segment.path, segment.letters)
            self._drop(segment)
            return [], 0

    def passed(self, segment: Segment, size: int, homes: set[int]) -> None:
        """Note which homes letters still wait for when the sender has come through; remove what is empty."""
        if segment.size == size:  # else there are new letters, and their homes
            segment.homes = homes
        if not segment.letters:
            self.sweep()

    def forget_homes(self) -> None:
        """Take the homes of all letters for unknown: the queue has other shards now."""
        for segment in self._segments:
            segment.homes = None

    def sweep(self) -> None:
        """Remove the segments whose letters are all sent, and the locks of owners that have none any more."""
        empty = [each for each in self._segments if not each.letters]
        for segment in empty:
            segment.end()
            self._drop(segment)
        if empty:
            sync_directory(self.path)  # sent letters do not come back
        for owner in self._owners.held - {each.owner for each in self._segments} - {self._owner}:
            self._let_go(owner)

    def _drop(self, segment: Segment) -> None:
        if self._open is not None and self._open[1] is segment:
            self._seal()
        if segment in self._segments:
            self._segments.remove(segment)

    def _let_go(self, owner: str) -> None:
        """End an owner; one whose segments we left alone stays, for who can read them."""
        if any(_owner(name) == owner for name in os.listdir(self.path)):
            self._owners.release(owner)
        else:
            self._owners.remove(owner)

    # -- adopting ------------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over what dead owners have left; return how many letters that is."""
        adopted = 0
        for owner in sorted(self._others()):
            try:
                ours = self._owners.lock(owner)
            except PermissionError as error:
                self._tell(self._owners.path(owner), f"is another user's and is left alone: {reason(error)}")
                continue
            if ours:
                names = sorted(name for name in os.listdir(self.path) if _owner(name) == owner)
                found = [self._adopted(owner, os.path.join(self.path, name)) for name in names]
                self._segments += [segment for segment in found if segment is not None]
                adopted += sum(segment.letters for segment in found if segment is not None)
        self.sweep()
        return adopted

    def _others(self) -> set[str]:
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return set()
        found = {match[1] for name in names if (match := SEGMENT.fullmatch(name) or LOCK.fullmatch(name))}
        return found - self._owners.held

    def _adopted(self, owner: str, path: str) -> Segment | None:
        try:
            return Segment.adopt(owner, path)
        except OtherVersion:
            self._tell(path, "is of another version and is left alone")
        except OSError as error:
            self._tell(path, f"cannot be read and is left alone: {reason(error)}")
        return None

    def _tell(self, path: str, what: str) -> None:
        if path not in self._told:
            self._told.add(path)
            logger.error("spool %s %s", path, what)

    # -- looking and leaving -------------------------------------------------------------------------

    def survey(self) -> SpoolStats:
        """Count what waits, of all owners: reads the heads of every letter, about 0.3 s for a full default spool."""
        size, captured = 0, list[int]()
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        for name in names:
            with suppress(FileNotFoundError), open(os.path.join(self.path, name), "rb") as file:
                size += os.fstat(file.fileno()).st_size
                if SEGMENT.fullmatch(name):
                    captured += heads(file.read())
        return SpoolStats(self.path, size, len(captured), min(captured, default=None), self._max_bytes)

    def close(self) -> None:
        """Leave the files to whoever comes next."""
        with suppress(OSError):
            self._seal()
            self._owner = ""  # one without letters ends like any other
            self.sweep()
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything; in a forked child it is the parent's."""
        self._owner = ""
        self._segments.clear()
        with suppress(OSError):
            self._seal()
        self._owners.forget()


def _part(records: Sequence[Packed], room: int) -> Sequence[Packed]:
    """Return the records that a segment takes before it is large enough: one at least."""
    for count, record in enumerate(records, 1):
        room -= record.size
        if room <= 0:
            return records[:count]
    return records


def _owner(name: str) -> str | None:
    match = SEGMENT.fullmatch(name)
    return match[1] if match else None
