"""The files of a spool: segments, the locks that say whose they are, and the bound of their bytes.

``<spool_dir>/<queue>/`` holds for each owner (one queue object in one event loop of one process) a lock file
``<owner>.lock`` and segments ``<owner>.<number>.spool``. An owner lives as long as somebody holds its lock (flock,
which every kind of death ends); the segments of a dead one are adopted by whoever locks it next. Names begin with
the time of their making, so their order is that of the letters.

All methods block on the disk and raise `OSError`; one thread at a time may call them.
"""

import errno
import fcntl
import logging
import os
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_bytes, token_hex
from time import time
from typing import Final

from uno.event_bus.dead_letter.spool_record import (
    HEADER_BYTES,
    MAGIC,
    STATE_AT,
    Packed,
    Record,
    State,
    heads,
    parse,
)

__all__ = ["Full", "Segment", "SpoolFiles", "SpoolStats"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""A segment that has grown to this gets no more letters: so sent ones free their disk space soon."""

_SEGMENT: Final = re.compile(r"(\d{13}-\d+-[0-9a-f]+)\.\d{6}\.spool")
_LOCK: Final = re.compile(r"(\d{13}-\d+-[0-9a-f]+)\.lock")

_forking = threading.Lock()
"""Held while a lock file is opened and noted: a child forked in between would hold it, and not know."""


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
    damaged: bool = False
    """Kept when all else is sent, for somebody to look at."""
    left: frozenset[int] | None = None
    """Homes of its letters when the sender last came through and could send none of them; None: it may try."""


class SpoolFiles:
    """The segments of one owner, and of those it has adopted."""

    def __init__(self, directory: str, queue: str, max_bytes: int) -> None:
        self.folder = os.path.join(directory, queue)
        self._max_bytes = max_bytes
        self._owner = ""
        self._locks: dict[str, int] = {}
        """Owner → descriptor of its lock file, locked: our own, and adopted ones."""
        self._segments: list[Segment] = []
        self._open: tuple[int, Segment] | None = None
        """Descriptor and segment that letters are appended to."""
        self._made = 0
        self._told: set[str] = set()

    # -- appending -----------------------------------------------------------------------------------

    @property
    def letters(self) -> int:
        """Letters that wait in our segments."""
        return sum(segment.letters for segment in self._segments)

    def append(self, calls: Sequence[Sequence[Packed]]) -> list[Exception | None]:
        """Write the records of several calls, with one fsync a segment; return what refused each call, if anything.

        A call is written whole or not at all: `Full`, or an `OSError` for all that were written together. An error
        with ``errno`` None says that it may be on disk all the same.
        """
        self._prepare()
        used, taken, refused = self._bytes(), list[Packed](), list[Exception | None]()
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
        if self._owner and not os.path.exists(self._lock_path(self._owner)):
            self._release(self._owner)
            self._owner = ""
        _make_directory(self.folder)
        while not self._owner:
            owner = f"{int(time() * 1000):013d}-{os.getpid()}-{token_hex(4)}"
            self._owner = owner if self._lock(owner) else ""

    def _bytes(self) -> int:
        with os.scandir(self.folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)

    def _write(self, records: Sequence[Packed]) -> None:
        written: list[tuple[Segment, int, int]] = []
        at = 0
        try:
            while at < len(records):
                fd, segment = self._open or self._begin()
                chunk, size = list[bytes](), segment.size
                while at + len(chunk) < len(records) and (not chunk or size < SEGMENT_BYTES):
                    chunk.append(records[at + len(chunk)].record(segment.header))
                    size += len(chunk[-1])
                written.append((segment, size, len(chunk)))
                _write_all(fd, b"".join(chunk), segment.size)
                os.fsync(fd)
                at += len(chunk)
                if size >= SEGMENT_BYTES:
                    self._seal()
        except OSError as error:
            raise self._undone(error, [segment for segment, _, _ in written]) from error
        for segment, size, letters in written:
            segment.size = size
            segment.letters += letters

    def _begin(self) -> tuple[int, Segment]:
        """Make the next segment; its name is on disk when this returns."""
        self._made += 1
        path = os.path.join(self.folder, f"{self._owner}.{self._made:06d}.spool")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        header = MAGIC + token_bytes(HEADER_BYTES - len(MAGIC))
        self._open = fd, Segment(self._owner, path, header, HEADER_BYTES, 0)
        self._segments.append(self._open[1])
        _write_all(fd, header, 0)
        os.fsync(fd)
        _sync_directory(self.folder)
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
                os.truncate(segment.path, segment.size)
        except OSError as second:
            return OSError(f"{_why(error)}, and what was written could not be taken back: {_why(second)}")
        with suppress(OSError):
            self.sweep()
        return error

    # -- sending -------------------------------------------------------------------------------------

    def segments(self) -> list[Segment]:
        """Return the segments that have letters, oldest first."""
        return sorted((each for each in self._segments if each.letters), key=lambda each: each.path)

    def load(self, segment: Segment) -> tuple[list[Record], bool]:
        """Return the letters of a segment that are not sent, and whether no more will come to it."""
        try:
            with open(segment.path, "rb") as file:
                data = file.read(segment.size)
        except FileNotFoundError:
            logger.error("spool %s was removed with %d letters that were not sent", segment.path, segment.letters)
            self._drop(segment)
            return [], True
        found = parse(data)
        segment.letters = len(found.records)
        segment.damaged = segment.damaged or found.damaged > 0 or found.end < segment.size
        return found.records, self._open is None or self._open[1] is not segment

    def mark(self, segment: Segment, offsets: Iterable[int], state: State, *, sync: bool) -> None:
        """Write the state of records, at most one of each that is `SENT`; with `sync` it survives a power cut."""
        fd = os.open(segment.path, os.O_RDWR)
        try:
            for offset in offsets:
                os.pwrite(fd, bytes([state]), offset + STATE_AT)
                segment.letters -= state is State.SENT
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Remove the segments whose letters are all sent, and the locks of owners that have none any more."""
        for segment in [each for each in self._segments if not each.letters]:
            if segment.damaged:
                os.rename(segment.path, f"{segment.path}.damaged")
            else:
                os.unlink(segment.path)
            self._drop(segment)
        for owner in self._locks.keys() - {each.owner for each in self._segments} - {self._owner}:
            self._remove_lock(owner)

    def _drop(self, segment: Segment) -> None:
        if self._open is not None and self._open[1] is segment:
            self._seal()
        self._segments.remove(segment)

    # -- owners --------------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over what dead processes have left; return how many letters that is."""
        adopted = 0
        for owner in sorted(self._owners() - self._locks.keys()):
            try:
                ours = self._lock(owner)
            except PermissionError as error:
                self._tell(self._lock_path(owner), f"is another user's and is left alone: {_why(error)}")
                continue
            if ours:
                mine = [self._adopted(owner, name) for name in sorted(os.listdir(self.folder)) if _owner(name) == owner]
                self._segments += [segment for segment in mine if segment is not None]
                adopted += sum(segment.letters for segment in mine if segment is not None)
        self.sweep()
        return adopted

    def _owners(self) -> set[str]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {match[1] for name in names if (match := _SEGMENT.fullmatch(name) or _LOCK.fullmatch(name))}

    def _adopted(self, owner: str, name: str) -> Segment | None:
        path = os.path.join(self.folder, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            self._tell(path, f"cannot be read and is left alone: {_why(error)}")
            return None
        if not MAGIC.startswith(data[: len(MAGIC)]):
            self._tell(path, "is of another version and is left alone")
            return None
        found = parse(data)
        if found.end < len(data):
            logger.warning("spool %s: the last %d bytes are torn and cut off", path, len(data) - found.end)
            os.truncate(path, found.end)
        if found.damaged:
            logger.error("spool %s: %d bytes are damaged; the file is kept as .damaged", path, found.damaged)
        return Segment(owner, path, data[:HEADER_BYTES], found.end, len(found.records), damaged=found.damaged > 0)

    def _tell(self, path: str, what: str) -> None:
        if path not in self._told:
            self._told.add(path)
            logger.error("spool %s %s", path, what)

    def _lock_path(self, owner: str) -> str:
        return os.path.join(self.folder, f"{owner}.lock")

    def _lock(self, owner: str) -> bool:
        """Lock an owner, dead or new; answer whether it is ours now."""
        path = self._lock_path(owner)
        with _forking:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    self._locks[owner] = fd
                    return True
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT):
                    os.close(fd)
                    raise
            os.close(fd)
            return False

    def _release(self, owner: str) -> None:
        os.close(self._locks.pop(owner))

    def _remove_lock(self, owner: str) -> None:
        if not any(_owner(name) == owner for name in os.listdir(self.folder)):  # one left alone needs it
            with suppress(FileNotFoundError):
                os.unlink(self._lock_path(owner))
        self._release(owner)

    # -- looking and leaving -------------------------------------------------------------------------

    def survey(self) -> SpoolStats:
        """Count what waits, of all owners: reads the heads of every letter, about 0.3 s for a full default spool."""
        size, captured = 0, list[int]()
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        for name in names:
            with suppress(FileNotFoundError), open(os.path.join(self.folder, name), "rb") as file:
                size += os.fstat(file.fileno()).st_size
                if _SEGMENT.fullmatch(name):
                    captured += heads(file.read())
        return SpoolStats(self.folder, size, len(captured), min(captured, default=None), self._max_bytes)

    def close(self) -> None:
        """Leave the files to whoever comes next."""
        with suppress(OSError):
            self._seal()
            self.sweep()
            if self._owner in self._locks and not any(each.owner == self._owner for each in self._segments):
                self._remove_lock(self._owner)
        self._forget()

    def abandon(self) -> None:
        """Let go of the parent's files, in a forked child: its locks end with it, and not with us."""
        self._forget()

    def _forget(self) -> None:
        descriptors = [*self._locks.values(), *([self._open[0]] if self._open is not None else [])]
        self._owner, self._open = "", None
        self._locks.clear()
        self._segments.clear()
        for fd in descriptors:
            with suppress(OSError):
                os.close(fd)


def _owner(name: str) -> str | None:
    match = _SEGMENT.fullmatch(name)
    return match[1] if match else None


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _make_directory(path: str) -> None:
    """Make a directory, for us alone, and those above it; their names are on disk when this returns."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)
