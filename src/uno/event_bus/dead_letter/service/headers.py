"""Headers of a request, as the wire has them, and what some of them say."""

import re
import secrets
from typing import Final
from urllib.parse import urlsplit

from uno.event_bus.dead_letter.service.access import TOKEN

__all__ = ["Headers", "host_of", "netloc_of", "new_request_id", "request_id_of"]

_SOUND_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")


class Headers:
    """Headers of a request, by their names in small letters."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of a header."""
        return [value for known, value in self._pairs if known == name]

    @property
    def length(self) -> int:
        """What the request says of its body's length, bytes; 0 when it says nothing."""
        return max((int(value) for value in self.all(b"content-length")), default=0)

    @property
    def announce_body(self) -> bool:
        """Whether a body follows."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in self._pairs
        )


def request_id_of(given: list[bytes]) -> str:
    """Return what the request calls itself, if that is sound and no token, else a new name."""
    if len(given) == 1 and _SOUND_ID.fullmatch(given[0]) and not TOKEN.search(text := given[0].decode()):
        return text
    return new_request_id()


def new_request_id() -> str:
    """Return a name for a request that has none."""
    return secrets.token_hex(8)


def host_of(value: bytes) -> str:
    """Return the host of a ``Host`` header, without port and brackets; empty for what is none."""
    match = _HOST.fullmatch(value.strip())
    return match[1].decode().strip("[]").rstrip(".").lower() if match else ""


def netloc_of(origin: bytes) -> str:
    """Return host and port of an ``Origin``; empty for ``null`` and what is none."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""
