"""A service in front of a queue, in the test's own event loop, on a free port of loopback."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from uno.event_bus.dead_letter import DeadLetterQueue

__all__ = ["service_of"]


@asynccontextmanager
async def service_of(queue: DeadLetterQueue, **settings: Any) -> AsyncGenerator[str]:
    """Serve a queue; yield the URL."""
    raise NotImplementedError
    yield ""
