"""One sound request of each operation of the service: what it is for, and what it would do were it let in."""

from typing import Any, Final, NamedTuple

__all__ = ["REQUESTS", "Sound"]


class Sound(NamedTuple):
    """A request that is refused for who sends it, or not at all; ``{id}`` is an open letter."""

    role: str | None
    """Who may: this role, and those that include it; ``any`` of them; None: also who has none."""
    status: int
    body: Any = None
    content_type: str = "application/json"


CLOUD_EVENT: Final = {"specversion": "1.0", "id": "1", "source": "/roles", "type": "sound", "data": {}}
EVENT: Final = {"type": "sound", "payload": {}}
KEY: Final = {"event_id": "sound", "kept_since_ms": 0}

REQUESTS: Final[dict[str, Sound]] = {
    "POST /v1/letters": Sound("capture", 201, EVENT),
    "POST /v1/letters/batch": Sound("capture", 201, {"events": [EVENT]}),
    "POST /v1/letters/known": Sound("capture", 200, {"keys": [KEY], "now_ms": 1}),
    "POST /v1/events": Sound("capture", 201, CLOUD_EVENT, "application/cloudevents+json"),
    "GET /v1/queue": Sound("any", 200),
    "GET /v1/letters": Sound("read", 200),
    "GET /v1/letters/{id}": Sound("read", 200),
    "GET /v1/letters/{id}/payload": Sound("read", 200),
    "GET /v1/stats": Sound("read", 200),
    "GET /v1/workers": Sound("read", 200),
    "GET /v1/health": Sound("read", 200),
    "POST /v1/verify": Sound("read", 200),
    "GET /v1/audit": Sound("read", 200),
    "GET /metrics": Sound("read", 200),
    "POST /v1/letters/{id}/retry": Sound("operate", 200, {"delay_ms": 3_600_000}),
    "POST /v1/letters/{id}/park": Sound("operate", 200, {"why": "sound"}),
    "POST /v1/letters/{id}/discard": Sound("operate", 200, {"why": "sound"}),
    "POST /v1/letters/retry": Sound("operate", 200, {"where": {}, "delay_ms": 3_600_000}),
    "POST /v1/letters/discard": Sound("operate", 200, {"where": {}, "why": "sound"}),
    "POST /v1/shards": Sound("admin", 200, {"shards": 4}),
    "GET /healthz": Sound(None, 200),
    "GET /readyz": Sound(None, 200),
}
"""Method and path → the request. An operation without one fails `tests/integration/test_service_roles.py`."""
