"""Whose a segment is: owners, their lock files, and which of them this process holds.

An owner (one queue object in one event loop of one process) lives as long as somebody holds its lock: a flock, which
every kind of death ends, and which no process id can be mistaken for. The segments of a dead one are adopted by
whoever locks it next. A name begins with the time of its making, so names sort as the owners began.
"""

import errno
import fcntl
import os
import re
import threading
import weakref
from collections.abc import Set
from contextlib import suppress
from secrets import token_hex
from time import time
from typing import Final

__all__ = ["LOCK", "OWNER", "Owners"]

OWNER: Final = r"\d{13}-\d+-[0-9a-f]+"
"""Made at (ms), process id, random."""

LOCK: Final = re.compile(rf"({OWNER})\.lock")

_forking = threading.Lock()
"""Held while a lock file is opened and noted: a child forked in between would hold it, and not know."""


class Owners:
    """The owners in one directory that this process has locked."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._descriptors: dict[str, int] = {}
        # Of a spool that nobody closed and nobody can use any more: others may adopt its segments.
        weakref.finalize(self, _close_all, self._descriptors)

    @property
    def held(self) -> Set[str]:
        """Those that are ours: our own, and adopted ones."""
        return self._descriptors.keys()

    def new(self) -> str:
        """Make an owner of our own, and lock it."""
        while True:
            owner = f"{int(time() * 1000):013d}-{os.getpid()}-{token_hex(4)}"
            if self.lock(owner):
                return owner

    def lock(self, owner: str) -> bool:
        """Lock an owner, dead or new; answer whether it is ours now."""
        path = self.path(owner)
        with _forking:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    self._descriptors[owner] = fd
                    return True
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
                    os.close(fd)
                    raise
            os.close(fd)
            return False

    def path(self, owner: str) -> str:
        """Return where an owner's lock file is."""
        return os.path.join(self._folder, f"{owner}.lock")

    def release(self, owner: str) -> None:
        """Give an owner up; whoever wants may adopt what is its own."""
        os.close(self._descriptors.pop(owner))

    def remove(self, owner: str) -> None:
        """End an owner that has no segments: its lock file goes, while we still hold it."""
        with suppress(FileNotFoundError):
            os.unlink(self.path(owner))
        self.release(owner)

    def forget(self) -> None:
        """Give all up. In a forked child that leaves them to the parent: its locks end with it, and not with us."""
        _close_all(self._descriptors)


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.popitem()[1])


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)
