"""Bodies of requests: how large, how slow, and how much of the memory all of them together."""

import asyncio
from typing import Final

from starlette.types import Receive

from uno.event_bus.dead_letter.service.headers import Headers
from uno.event_bus.dead_letter.service.refusal import Refusal

__all__ = ["Bodies", "Gone"]

FULL_BODIES: Final = 8
"""All requests together hold bodies of so many times the largest one; what would be more gets 503."""


class Gone(Exception):
    """The client has hung up: nobody waits for a reply."""


class Bodies:
    """The bodies that a process holds: of `most` bytes each, and none for longer than `timeout_s` on its way."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most, self._timeout_s = most, timeout_s
        self._held_bytes = 0

    def check_length(self, headers: Headers) -> None:
        """Refuse a body that says itself that it is too large."""
        if headers.length > self._most:
            raise self._too_large()

    async def read(self, receive: Receive, held: list[int]) -> bytes:
        """Return the whole body; what it takes of the memory for bodies is added to `held`, piece by piece."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._most:
                        raise self._too_large()
                    self._hold(len(part), held)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            late = f"the body took longer than {self._timeout_s:g} s"
            raise Refusal(408, "timeout", late, closes=True) from None

    def _hold(self, size: int, held: list[int]) -> None:
        if self._held_bytes + size > FULL_BODIES * self._most:
            raise Refusal(503, "overloaded", "too many large requests are under way", {"retry-after": "1"}, closes=True)
        self._held_bytes += size
        held[0] += size

    def let_go(self, size: int) -> None:
        """Give back what a request held."""
        self._held_bytes -= size

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body is larger than {self._most} bytes", closes=True)
