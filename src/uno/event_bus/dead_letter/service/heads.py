"""Heads of requests: how large, and in which form. What two servers could read differently is refused."""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from uno.event_bus.dead_letter.service.refusal import Refusal

__all__ = ["HEAD_BYTES", "MOST_HEADERS", "check_head", "too_large"]

HEAD_BYTES: Final = 32_768
MOST_HEADERS: Final = 100

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\]|$)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def check_head(method: bytes, url: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Raise `Refusal` for what is no path, and for what another server may read as something else."""
    path, _, query = url.partition(b"?")
    if not path.startswith(b"/") or path.startswith(b"//") or b"#" in url or method == b"CONNECT":
        raise _bad("a request asks for a path that begins with one slash")
    if not url.isascii() or _BAD_ESCAPE.search(url):
        raise _bad("the path is not percent-encoded")
    try:
        plain = unquote_to_bytes(path).decode()
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise _bad("the path is no UTF-8") from None
    else:
        if _CONTROL.search(plain) or _DOTS.search(plain):
            raise Refusal(404, "not_found", "no path here has such parts")
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if encodings and [value.strip().lower() for value in encodings] != [b"chunked"]:
        raise _bad("the one Transfer-Encoding taken is chunked")
    if len([name for name, _ in headers if name == b"host"]) != 1 and version == "1.1":
        raise _bad("a request has exactly one Host")


def too_large() -> Refusal:
    """Return what a head is told that is too large."""
    return Refusal(431, "head_too_large", f"a head has at most {HEAD_BYTES} bytes and {MOST_HEADERS} headers")


def _bad(detail: str) -> Refusal:
    return Refusal(400, "bad_request", detail)
