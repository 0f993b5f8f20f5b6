"""Adding to the file of tokens, so that a service that reads it never sees half of it."""

import fcntl
import os
import tempfile
from pathlib import Path

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service.access import parse_tokens

__all__ = ["append_token"]


def append_token(path: str, line: str) -> None:
    """Add a line to a file of tokens, which is made, for its user alone, when it is missing; mode and owner stay.

    Processes that do so at the same time wait for each other. Raises `ConfigError` for a file that is wrong already,
    `OSError` where it cannot be written.
    """
    target = Path(os.path.realpath(path))  # behind a link the file changes, not the link
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        before = _before(target)
        text = before + ("" if before.endswith("\n") or not before else "\n") + line + "\n"
        parse_tokens(text, f"tokens file {path!r}")
        _replace(target, text.encode())
        os.fsync(directory)
    finally:
        os.close(directory)


def _before(target: Path) -> str:
    try:
        return target.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise ConfigError(f"tokens file {str(target)!r} is no UTF-8") from None


def _replace(target: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".tokens-", dir=target.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if target.exists():
                status = target.stat()
                os.fchmod(descriptor, status.st_mode & 0o7777)
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
