"""Who a request comes from: tokens, kept hashed in a file that may change at any time.

One token a line: a name, its roles, the SHA-256 of the token, and until when it is good; ``#`` begins a comment::

    billing  capture          sha256:9f86d081884c7d65…
    oncall   operate          sha256:60303ae22b998861…  until 2027-03-01T00:00:00Z
    ci       capture,read     sha256:fd61a03af4f77d87…

One name may have several: to rotate, add the new one, hand it out, and remove the old one.

A plain hash is enough. What makes guessing a password from its hash cheap is that people choose it; a token is 256
random bits, and no salt or slow hash makes those any harder to find. Whoever reads the file learns names, no token.
"""

import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service.caller import ROLES, Caller
from uno.event_bus.dead_letter.service.refusal import Refusal

__all__ = ["TOKEN", "Tokens", "line_of", "new_token", "parse_tokens", "without_tokens"]

logger = logging.getLogger(__name__)

PREFIX: Final = "uno_"
"""What a token begins with, so that programs that look for secrets where none belong can find it."""

RANDOM_BYTES: Final = 32
LOOK_S: Final = 1.0
"""The file is looked at no more often."""

MOST_TOKENS: Final = 1000
"""Each request is compared with all of them: a thousand cost it some 0.1 ms."""

MOST_BYTES: Final = 1_048_576

TOKEN: Final = re.compile(r"uno_[A-Za-z0-9_-]{20,}")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_BEARER: Final = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]{1,512}=*)")
_CHALLENGE: Final = 'Bearer realm="uno dead-letter"'


class Entry(NamedTuple):
    """A line of the file."""

    caller: Caller
    digest: bytes
    until: float | None
    """Unix time, seconds, from which on it is good no more; None: for ever."""


def new_token() -> str:
    """Return a token nobody has seen yet."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def line_of(name: str, roles: frozenset[str], token: str, until: float | None = None) -> str:
    """Return the line for the file, without its end. Raises `ConfigError` for a name or roles that cannot be."""
    if not NAME.fullmatch(name) or name == "anyone":
        raise ConfigError(f"the name is {name[:80]!r}: allowed are 1 to 64 of A-Z a-z 0-9 . _ @ - but not 'anyone'")
    if not roles or roles - set(ROLES):
        raise ConfigError(f"the roles are {', '.join(sorted(roles)) or 'none'}: allowed are {', '.join(ROLES)}")
    line = f"{name} {','.join(sorted(roles))} sha256:{sha256(token.encode()).hexdigest()}"
    return line if until is None else f"{line} until {datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"


def without_tokens(text: str) -> str:
    """Return a text that others sent as a log may show it."""
    return TOKEN.sub(f"{PREFIX}***", text)


# --- the file --------------------------------------------------------------------------------------------


def parse_tokens(text: str, where: str) -> list[Entry]:
    """Return the entries of a file. Raises `ConfigError` that names the line, never what stands in it."""
    entries: dict[bytes, Entry] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        entry = _entry(words, f"{where} line {number}")
        if entry.digest in entries:
            raise ConfigError(f"{where} line {number}: this token stands in the file twice")
        entries[entry.digest] = entry
    if not any(line.strip() for line in lines):
        # What a writer has cut short looks like this. A file of comments alone is meant: nobody comes in.
        raise ConfigError(f"{where} is empty")
    if len(entries) > MOST_TOKENS:
        raise ConfigError(f"{where} has {len(entries)} tokens: allowed are {MOST_TOKENS}")
    return list(entries.values())


def _entry(words: list[str], where: str) -> Entry:
    if len(words) not in (3, 5) or (len(words) == 5 and words[3] != "until"):
        raise ConfigError(f"{where}: wanted is: name roles sha256:<64 hex digits> [until <date and time>]")
    name, roles, digest = words[:3]
    if not NAME.fullmatch(name) or name == "anyone" or TOKEN.search(name):
        raise ConfigError(f"{where}: the name is none: allowed are 1 to 64 of A-Z a-z 0-9 . _ @ -")
    unknown = set(roles.split(",")) - set(ROLES)
    if unknown:
        raise ConfigError(f"{where}: a role is none of {', '.join(ROLES)} (several are separated by commas)")
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise ConfigError(f"{where}: the third word is no sha256:<64 hex digits>")
    until = _moment(words[4], where) if len(words) == 5 else None
    return Entry(Caller(name, frozenset(roles.split(","))), bytes.fromhex(found[1]), until)


def _moment(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{where}: what follows 'until' is no date, for example 2027-03-01T00:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Tokens:
    """The tokens of a file. Raises `ConfigError` for one that is wrong, or not there, when it is made.

    Later on the file is looked at again, once a second at most and only when somebody asks; one that has become wrong
    changes nothing but the log, and the last good one holds.
    """

    def __init__(
        self, path: str, *, now: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = Path(path)
        self._now, self._ticks = now, ticks
        self._looked_at = ticks()
        self._seen: tuple[int, ...] | None = None
        self._told = ""
        self._has_warned = False
        self._entries = self._read()

    def caller(self, authorization: list[bytes]) -> Caller:
        """Return who sends requests with these ``Authorization`` headers. Raises `Refusal` with status 401."""
        self._look()
        if not authorization:
            raise _unauthenticated("a token is needed: Authorization: Bearer <token>", _CHALLENGE)
        given = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
        if given is None:
            raise _unauthenticated("what is wanted is one header, Authorization: Bearer <token>", _CHALLENGE)
        digest, found = sha256(given[1]).digest(), None
        for entry in self._entries:  # all of them, so that the time tells nothing of where it stands
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        invalid = f'{_CHALLENGE}, error="invalid_token"'
        if found is None:
            raise _unauthenticated("the token is not known here", invalid)
        if found.until is not None and found.until <= self._now():
            moment = datetime.fromtimestamp(found.until, UTC).isoformat(timespec="seconds")
            raise _unauthenticated(f"the token of {found.caller.name} has expired at {moment}", invalid)
        return found.caller

    def _look(self) -> None:
        """Read the file again if it has changed."""
        if self._ticks() - self._looked_at < LOOK_S:
            return
        self._looked_at = self._ticks()
        try:
            if self._seen is not None and _print_of(os.stat(self._path)) == self._seen:
                return
            entries = self._read()
        except (ConfigError, OSError) as error:
            # Only once for each trouble; the ration of repeated lines is for what changes.
            if self._told != str(error):
                logger.error("the tokens stay as they were: %s", error)
            self._told = str(error)
            return
        self._told = ""
        if entries != self._entries:
            logger.info("tokens read: %d of %d names", len(entries), len({entry.caller.name for entry in entries}))
        self._entries = entries

    def _read(self) -> list[Entry]:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"tokens file {str(self._path)!r} cannot be read: {error.strerror}") from error
        where = f"tokens file {str(self._path)!r}"
        # One that was written just now may be written again within the same tick of its clock: look again.
        is_fresh = time.time() - status.st_mtime < 2 * LOOK_S
        self._seen = None if is_fresh else _print_of(status)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{where} is larger than {MOST_BYTES} bytes")
        try:
            entries = parse_tokens(content.decode(), where)
        except UnicodeDecodeError:
            raise ConfigError(f"{where} is no UTF-8") from None
        if status.st_mode & stat.S_IROTH and not self._has_warned:
            logger.warning("%s is readable by everybody on this machine: chmod 600", where)
            self._has_warned = True
        return entries


def _print_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _unauthenticated(detail: str, challenge: str) -> Refusal:
    return Refusal(401, "unauthenticated", detail, {"www-authenticate": challenge})
