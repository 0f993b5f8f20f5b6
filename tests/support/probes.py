"""Asking for pages over HTTP, and nothing more than that."""

import json
import time
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def record(self) -> Any:
        """The JSON that it is."""
        return json.loads(self.body)


def get(
    url: str, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """Ask for a page; blocks."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, path, body, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def get_until(url: str, path: str, status: int, within_s: float = 20.0) -> Answer:
    """Ask until the answer has this status; blocks."""
    deadline = time.monotonic() + within_s
    while (answer := get(url, path)).status != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer
