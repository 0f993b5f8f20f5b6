"""What every request passes before it reaches a route, and every reply after.

In this order: a name for the request; the name by which it calls the service, and the page it comes from; its token;
the caller's rate (see `entrance`); its body, which is read here, so that a route begins with all of it. A refusal is a
problem (`application/problem+json`) with a stable code, and its line says what is wanted.

Routes find the caller in ``request.state.caller`` and the request's name in ``request.state.request_id``.
"""

import asyncio
import logging
from collections.abc import Mapping
from time import perf_counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uno.event_bus.dead_letter.remote.wire import REQUEST_HEADER
from uno.event_bus.dead_letter.service.access import Tokens, without_tokens
from uno.event_bus.dead_letter.service.bodies import Bodies, Gone
from uno.event_bus.dead_letter.service.caller import NOBODY
from uno.event_bus.dead_letter.service.entrance import PROBES, Entrance
from uno.event_bus.dead_letter.service.headers import Headers, request_id_of
from uno.event_bus.dead_letter.service.refusal import SECURITY_HEADERS, Refusal, reply_of
from uno.event_bus.dead_letter.service.settings import ServiceSettings

__all__ = ["Guard"]

logger = logging.getLogger(__name__)

SMALL_BODY: Final = 65_536
SHOWN_PATH: Final = 200

_ALIASES: Final[Mapping[str, str]] = {"/livez": "/healthz"}
"""What a worker's probe is called → the service's: `health --live` asks both alike."""


class Guard:
    """ASGI middleware around the routes.

    Args:
        app: The routes.
        settings: The bounds.
        tokens: Who may come in; None: anyone.
        address: What the service listens at, where that is an address: a name for it.
    """

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, tokens: Tokens | None = None, *, address: str = ""
    ) -> None:
        self.app = app
        self.entrance = Entrance(settings, tokens, address)
        self.bodies = Bodies(settings.max_body_bytes, settings.request_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and have it answered."""
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)


class _Exchange:
    """One request and its reply."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = Headers(scope["headers"])
        self._id = request_id_of(self._headers.all(REQUEST_HEADER.encode()))
        self._status = 0
        self._begun_at = perf_counter()
        self._caller = NOBODY
        self._body: bytes | None = None
        self._has_read = False

    async def run(self) -> None:
        """Check it, have it answered, and note it."""
        held = [0]
        try:
            await self._answer(held)
        except Gone:
            pass
        except Refusal as refused:
            await self._refuse(refused)
        except asyncio.CancelledError:
            # By the server, whose time to end is over: nothing else cancels what answers a request.
            if not self._status:
                why = "the service stops; what the request asked for may have been done"
                await self._refuse(Refusal(503, "stopping", why, {"retry-after": "1"}, closes=True))
        except Exception:
            logger.exception("request %s failed", self._id)
            if self._status:
                raise  # a reply that has begun is cut off
            await self._refuse(Refusal(500, "internal_error", "the service has failed: its log says more"))
        finally:
            self._guard.bodies.let_go(held[0])
            self._note()

    async def _answer(self, held: list[int]) -> None:
        scope, guard = self._scope, self._guard
        self._caller = guard.entrance.check(scope, self._headers)
        guard.bodies.check_length(self._headers)
        try:
            guard.entrance.check_rate(scope, self._caller)
        except Refusal:
            if self._headers.length <= SMALL_BODY:
                # It is here already, most likely: to read it spares the caller a new connection.
                await guard.bodies.read(self._receive, held)
                self._has_read = True
            raise
        self._body = await guard.bodies.read(self._receive, held)
        self._has_read = True
        state = scope.setdefault("state", {})
        state["caller"], state["request_id"] = self._caller, self._id
        if scope["path"] in _ALIASES:
            path = _ALIASES[scope["path"]]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await guard.app(scope, self._receive_whole, self._send_on)

    async def _receive_whole(self) -> Message:
        """Give the body; then wait for the client to hang up."""
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers: list[tuple[bytes, bytes]] = [
                pair for pair in message.get("headers", []) if pair[0].lower() != REQUEST_HEADER.encode()
            ]
            said = {name.lower() for name, _ in headers}
            headers.append((REQUEST_HEADER.encode(), self._id.encode()))
            headers += [pair for pair in SECURITY_HEADERS if pair[0] not in said]
            message = {**message, "headers": headers}
        await self._send(message)

    async def _refuse(self, refused: Refusal) -> None:
        if not self._has_read and self._headers.announce_body:
            refused.closes = True  # nobody is going to read what follows
        headers, body = reply_of(refused, self._id)
        self._status = refused.status
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body})

    def _note(self) -> None:
        """Log the request: what went well for those who debug alone, what was refused or failed for all."""
        level = logging.DEBUG if self._status < 400 else logging.INFO if self._status < 500 else logging.WARNING
        if self._scope["path"] in PROBES:
            level = logging.DEBUG  # not ready is no news each second
        if not logger.isEnabledFor(level):
            return
        logger.log(
            level,
            "%s %s: %s in %.1f ms, caller %s, request %s",
            self._scope["method"],
            without_tokens(self._scope["path"])[:SHOWN_PATH],
            self._status or "hung up",
            (perf_counter() - self._begun_at) * 1000,
            self._caller.name or "-",
            self._id,
        )
