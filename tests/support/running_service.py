"""A service in front of a queue: a real server, in the test's own event loop, on a free port of loopback."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from uno.event_bus.dead_letter import DeadLetterQueue
from uno.event_bus.dead_letter.service.access import line_of, new_token
from uno.event_bus.dead_letter.service.app import make_app
from uno.event_bus.dead_letter.service.server import Server
from uno.event_bus.dead_letter.service.settings import ServiceSettings

__all__ = ["service_of", "tokens"]

GRACE_S = 2.0


@asynccontextmanager
async def service_of(queue: DeadLetterQueue, **settings: Any) -> AsyncGenerator[str]:
    """Serve a queue; yield the URL."""
    chosen, stop = ServiceSettings(**({"port": 0, "rate": 0} | settings)), anyio.Event()
    app = make_app(queue, stop=stop, open_to_all=chosen.tokens_file is None)
    async with Server(app, chosen, grace_s=GRACE_S) as server:
        try:
            yield server.url
        finally:
            stop.set()


def tokens(path: Path, *, known: dict[str, str] | None = None, **roles: Sequence[str]) -> dict[str, str]:
    """Write a file of tokens: name → roles; return name → token, new ones but for those that are known."""
    made = {name: (known or {}).get(name) or new_token() for name in roles}
    lines = [line_of(name, frozenset(of_name), made[name]) for name, of_name in roles.items()]
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return made
