"""Requests that go no further: what they are answered, before or in place of any route."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from uno.event_bus.dead_letter.remote.wire import PROBLEM, REQUEST_HEADER, Problem

__all__ = ["SECURITY_HEADERS", "Refusal", "reply_of"]

SECURITY_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'"),
)
"""Of every reply that does not say otherwise itself: nothing of it is kept, run, or taken for something else."""


class Refusal(Exception):
    """A request is refused, with this status, stable code, and line for people; `closes` its connection as well."""

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, *, closes: bool = False
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = dict(headers or {})
        self.closes = closes


def reply_of(refused: Refusal, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of the reply."""
    problem = Problem(
        type=f"urn:uno:dead-letter:{refused.code}",
        title=HTTPStatus(refused.status).phrase,
        status=refused.status,
        detail=refused.detail,
        code=refused.code,
        request_id=request_id,
    )
    body = msgspec.json.encode(problem)
    headers = {
        "content-type": PROBLEM,
        "content-length": str(len(body)),
        REQUEST_HEADER: request_id,
        **refused.headers,
        **({"connection": "close"} if refused.closes else {}),
    }
    return [*((name.encode(), value.encode("latin-1")) for name, value in headers.items()), *SECURITY_HEADERS], body
