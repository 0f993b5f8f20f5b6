"""What every request passes before it reaches a route, and every reply after: who asks, how much, from where.

In this order: a name for the request; the name by which it calls the service, and the page it comes from; its token;
the caller's rate; its body, which is read here, so that a route begins with all of it. A refusal is a problem
(`application/problem+json`) with a stable code, and its line says what is wanted.

Routes find the caller in ``request.state.caller`` and the request's name in ``request.state.request_id``.
"""

import asyncio
import logging
import math
import re
import secrets
from collections.abc import Mapping
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uno.event_bus.dead_letter.remote.wire import REQUEST_HEADER
from uno.event_bus.dead_letter.service.access import TOKEN, Tokens, without_tokens
from uno.event_bus.dead_letter.service.caller import ANYONE, NOBODY, Caller
from uno.event_bus.dead_letter.service.rate import Rates
from uno.event_bus.dead_letter.service.refusal import SECURITY_HEADERS, Refusal, reply_of
from uno.event_bus.dead_letter.service.settings import ServiceSettings, is_loopback

__all__ = ["OPEN", "PROBES", "Guard", "new_request_id"]

logger = logging.getLogger(__name__)

PROBES: Final = frozenset({"/healthz", "/livez", "/readyz"})
"""Pages that anybody may ask for, by whatever name: kubelet calls a pod by its address."""

OPEN: Final = PROBES | {"/openapi.json", "/docs"}
"""Pages that need no token: they tell nothing of any letter."""

FULL_BODIES: Final = 8
"""All requests together hold bodies of so many times the largest one; what would be more gets 503."""

SHOWN_PATH: Final = 200

_SOUND_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_ALIASES: Final[Mapping[str, str]] = {"/livez": "/healthz"}
"""What a worker's probe is called → the service's: `health --live` asks both alike."""


class _Gone(Exception):
    """The client has hung up: nobody waits for a reply."""


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
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._rates = Rates(settings.rate)
        self._names = frozenset(settings.hosts)
        self._own_names = frozenset({settings.host.strip("[]").lower(), address.strip("[]").lower()})
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and have it answered."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request that has passed to the routes."""
        await self._app(scope, receive, send)

    # -- the checks ----------------------------------------------------------------------------------

    def check(self, scope: Scope, headers: "_Headers") -> Caller:
        """Return who asks. Raises `Refusal`."""
        path = scope["path"]
        if path not in PROBES:
            self._check_host(headers)
        self._check_origin(scope, headers)
        caller = self._caller(path, headers)
        client = scope.get("client")
        wait_s = self._rates.wait_s(
            f"name {caller.name}" if self._tokens and caller.name else f"{client and client[0]}"
        )
        if wait_s:
            after = {"retry-after": str(math.ceil(wait_s))}
            raise Refusal(429, "rate_limited", f"more than {self._settings.rate:g} requests a second", after)
        return caller

    def _check_host(self, headers: "_Headers") -> None:
        given = headers.all(b"host")
        if len(given) != 1:
            raise Refusal(400, "bad_request", "a request has exactly one Host", closes=True)
        host = _host_of(given[0])
        if self._names:
            is_ours = host in self._names
        else:
            is_ours = self._tokens is not None or is_loopback(host) or host in self._own_names
        if not is_ours or not host:
            raise Refusal(421, "misdirected", "the service is not called by this Host: see DLQ_SERVICE_HOSTS")

    def _check_origin(self, scope: Scope, headers: "_Headers") -> None:
        """Refuse what another site's page has a browser do here."""
        if scope["method"] in _SAFE:
            return
        host = b"".join(headers.all(b"host")).decode("latin-1").lower()
        for origin in headers.all(b"origin"):
            if _netloc(origin) != host:
                raise Refusal(403, "permission_denied", "the request comes from a page of another site")
        for site in headers.all(b"sec-fetch-site"):
            if site not in (b"same-origin", b"none"):
                raise Refusal(403, "permission_denied", "the request comes from a page of another site")

    def _caller(self, path: str, headers: "_Headers") -> Caller:
        if self._tokens is None:
            return ANYONE
        return NOBODY if path in OPEN else self._tokens.caller(headers.all(b"authorization"))

    # -- bodies --------------------------------------------------------------------------------------

    def check_length(self, headers: "_Headers") -> None:
        """Refuse a body that says itself that it is too large."""
        length = b"".join(headers.all(b"content-length"))
        if length and int(length) > self._settings.max_body_bytes:
            raise self._too_large()

    async def read_body(self, receive: Receive, held: list[int]) -> bytes:
        """Return the whole body; what it takes of the memory for bodies is added to `held`, piece by piece."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._settings.max_body_bytes:
                        raise self._too_large()
                    self._hold(len(part), held)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            late = f"the body took longer than {self._settings.request_timeout:g} s"
            raise Refusal(408, "timeout", late, closes=True) from None

    def _hold(self, size: int, held: list[int]) -> None:
        if self._held_bytes + size > FULL_BODIES * self._settings.max_body_bytes:
            raise Refusal(503, "overloaded", "too many large requests are under way", {"retry-after": "1"}, closes=True)
        self._held_bytes += size
        held[0] += size

    def let_go(self, size: int) -> None:
        """Give back what a request held."""
        self._held_bytes -= size

    def _too_large(self) -> Refusal:
        most = self._settings.max_body_bytes
        return Refusal(413, "body_too_large", f"the body is larger than {most} bytes", closes=True)


class _Headers:
    """Headers of a request, by their names in small letters."""

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of a header."""
        return [value for known, value in self._pairs if known == name]

    @property
    def announce_body(self) -> bool:
        """Whether a body follows."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in self._pairs
        )


class _Exchange:
    """One request and its reply."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = _Headers(scope["headers"])
        self._id = _request_id(self._headers.all(REQUEST_HEADER.encode()))
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
        except _Gone:
            pass
        except Refusal as refused:
            await self._refuse(refused)
        except Exception:
            logger.exception("request %s failed", self._id)
            if self._status:
                raise  # a reply that has begun is cut off
            await self._refuse(Refusal(500, "internal_error", "the service has failed: its log says more"))
        finally:
            self._guard.let_go(held[0])
            self._note()

    async def _answer(self, held: list[int]) -> None:
        scope, guard = self._scope, self._guard
        self._caller = guard.check(scope, self._headers)
        guard.check_length(self._headers)
        self._body = await guard.read_body(self._receive, held)
        self._has_read = True
        state = scope.setdefault("state", {})
        state["caller"], state["request_id"] = self._caller, self._id
        if scope["path"] in _ALIASES:
            path = _ALIASES[scope["path"]]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await guard.pass_on(scope, self._receive_whole, self._send_on)

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


def _request_id(given: list[bytes]) -> str:
    """Return what the request calls itself, if that is sound and no token, else a new name."""
    if len(given) == 1 and _SOUND_ID.fullmatch(given[0]) and not TOKEN.search(text := given[0].decode()):
        return text
    return new_request_id()


def new_request_id() -> str:
    """Return a name for a request that has none."""
    return secrets.token_hex(8)


def _host_of(value: bytes) -> str:
    """Return the host of a ``Host`` header, without port and brackets; empty for what is none."""
    match = re.fullmatch(rb"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", value.strip())
    return match[1].decode().strip("[]").rstrip(".").lower() if match else ""


def _netloc(origin: bytes) -> str:
    """Return host and port of an ``Origin``; empty for ``null`` and what is none."""
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower()
    except ValueError:
        return ""
