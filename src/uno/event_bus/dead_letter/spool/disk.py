"""What the standard library lacks for files that have to survive a power cut. All of it raises `OSError`."""

import os
from contextlib import suppress

__all__ = ["make_directory", "reason", "sync_directory", "write_all"]


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of the data there, however many calls that takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def make_directory(path: str) -> None:
    """Make a directory, for us alone, and those above it; their names are on disk when this returns."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    sync_directory(parent)


def sync_directory(path: str) -> None:
    """Have the names in a directory on disk: a file's own fsync does not see to that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def reason(error: OSError) -> str:
    """Return what went wrong, without number and path."""
    return error.strerror or str(error)
