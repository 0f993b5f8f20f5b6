"""The client of a service: one question and its answer, with timeouts, backoff and repeats that cannot do harm.

A try takes ``operation_timeout`` at most, and none begins later than that after the first: so a call ends within twice
that. What was certainly not done is tried again (nobody listens, the service says so, too many requests); what may
have been done, only where doing it twice is doing it once. The service's replicas are one address: a repeat may reach
another one.
"""

import random
from collections.abc import AsyncGenerator
from http import HTTPStatus
from time import monotonic
from typing import Final

import aiohttp
import anyio
import msgspec

from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError, DeadLetterError, PermissionDenied, StoreUnavailable
from uno.event_bus.dead_letter.remote.connections import (
    FAILURES,
    NOT_DONE,
    SILENT_S,
    Connections,
    Query,
    Reply,
    lines_of,
)
from uno.event_bus.dead_letter.remote.problems import error_of
from uno.event_bus.dead_letter.remote.wire import PROBLEM, Problem

__all__ = ["ServiceClient", "TokenRefused"]

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
"""Between two tries: doubled each time, less up to half of it by chance."""

NOTHING_DONE: Final = frozenset({"rate_limited", "overloaded", "timeout"})
"""Codes of a service that has not begun with a request, and may take it when it comes again."""


class TokenRefused(PermissionDenied):
    """Raised when a service does not know the token, so nothing was done; it may know it when it is rotated."""


class ServiceClient:
    """Connections of one event loop, which has to run, to the service of one queue; `close` at the end."""

    def __init__(self, url: str, config: DeadLetterConfig) -> None:
        self.url = url
        self.queue = config.queue
        self._timeout_s = config.operation_timeout
        self._token_file = config.service_token_file
        self._token = config.service_token or self._read_token()
        self._connections = Connections(url, config.queue, config.service_ca_file)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    # -- asking --------------------------------------------------------------------------------------

    async def ask[T](
        self,
        method: str,
        path: str,
        out: type[T],
        body: msgspec.Struct | None = None,
        *,
        query: Query | None = None,
        repeats: bool = True,
        within_s: float | None = None,
    ) -> T:
        """Return the answer to a request.

        `repeats`: doing it twice is doing it once, so it may be sent again when it is not known whether it was done.
        `within_s`: how long a try may take, where it is work that grows with the queue; None: ``operation_timeout``.

        Raises what the service says; `StoreUnavailable` when it does not answer, which is ``certain`` when nothing was
        done; `PermissionDenied` when it does not know the token, or the token's roles do not allow it.
        """
        content = None if body is None else msgspec.json.encode(body)
        timeout_s = self._timeout_s if within_s is None else max(within_s, self._timeout_s)
        last_begin, pause = monotonic() + self._timeout_s, FIRST_PAUSE_S
        unsure = renewed = False
        while True:
            token = self._token
            try:
                async with self._connections.turn(last_begin):
                    self._require_open(unsure=unsure)
                    reply = await self._connections.ask(
                        method, path, content, query=query, token=token, timeout_s=timeout_s
                    )
                if reply.is_success:
                    return self._decoded(reply, out)
                error, pause = self._refusal(reply), max(pause, _retry_after_s(reply))
                if reply.status == HTTPStatus.UNAUTHORIZED and not renewed and self._renew_token(token):
                    renewed = True
                    continue
            except FAILURES as failure:
                error = self._unreachable(failure, timeout_s)
            certain = not isinstance(error, StoreUnavailable) or error.certain
            unsure = unsure or not certain
            worth_it = isinstance(error, StoreUnavailable) and (certain or repeats)
            if not worth_it or monotonic() + pause > last_begin:
                raise error.unsure() if unsure and isinstance(error, StoreUnavailable) else error
            await anyio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def lines[T](
        self, method: str, path: str, out: type[T], body: msgspec.Struct | None = None
    ) -> AsyncGenerator[T]:
        """Yield the answer to a request line by line, as it comes; it is sent once.

        Raises as `ask`; an answer that breaks off leaves the outcome unknown.
        """
        content = b"{}" if body is None else msgspec.json.encode(body)
        decode = msgspec.json.Decoder(out).decode
        try:
            async with (
                self._connections.turn(monotonic() + self._timeout_s),
                await self._begun(method, path, content) as response,
            ):
                async for line in lines_of(response):
                    if line:
                        yield decode(line)
            return
        except (*FAILURES, msgspec.MsgspecError) as failure:
            error = self._unreachable(failure, SILENT_S)
        raise error

    async def _begun(self, method: str, path: str, content: bytes) -> aiohttp.ClientResponse:
        """Return a reply in lines that are still to be read; the caller closes it."""
        while True:
            self._require_open()
            token = self._token
            reply = await self._connections.begin(method, path, content, token=token, timeout_s=self._timeout_s)
            if isinstance(reply, aiohttp.ClientResponse):
                return reply
            if reply.status != HTTPStatus.UNAUTHORIZED or not self._renew_token(token):
                raise self._refusal(reply)

    def _require_open(self, *, unsure: bool = False) -> None:
        if self._connections.are_closed:
            raise StoreUnavailable("the queue was closed during the call", certain=not unsure)

    # -- what an answer means ------------------------------------------------------------------------

    def _decoded[T](self, reply: Reply, out: type[T]) -> T:
        try:
            return msgspec.json.decode(reply.body, type=out)
        except msgspec.MsgspecError as error:
            raise StoreUnavailable(f"{self.url} answers what a service does not: {error}") from None

    def _refusal(self, reply: Reply) -> DeadLetterError:
        """Return the error that an answer tells of; one that no service wrote is a proxy's."""
        status = reply.status
        problem = _problem_in(reply)
        if problem is None:
            return StoreUnavailable(f"{self.url} answers {status} {reply.reason}")
        if status == HTTPStatus.UNAUTHORIZED:
            return TokenRefused(f"{self.url}: {problem.detail}")
        if status == HTTPStatus.FORBIDDEN:
            return PermissionDenied(f"{self.url}: {problem.detail}")
        if problem.code in NOTHING_DONE:
            return StoreUnavailable(f"{self.url}: {problem.detail}", certain=True)
        return error_of(problem)

    def _unreachable(self, failure: Exception, timeout_s: float) -> StoreUnavailable:
        certain = isinstance(failure, NOT_DONE)
        if isinstance(failure, TimeoutError) and not certain:
            return StoreUnavailable(f"{self.url} has not answered within {timeout_s:g} s")
        error = StoreUnavailable(f"{self.url}: {str(failure) or type(failure).__name__}", certain=certain)
        if not isinstance(failure, aiohttp.ClientResponseError):  # its repr shows the token
            error.__cause__ = failure
        return error

    # -- the token -----------------------------------------------------------------------------------

    def _read_token(self) -> str:
        """Return the token of the file, empty without one. Raises `ConfigError` for a file that has none to read."""
        if self._token_file is None:
            return ""
        try:
            with open(self._token_file, encoding="ascii") as file:
                token = file.readline().strip()
            if token.isprintable():
                return token
            why: str | None = "its first line has control characters"
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"DLQ_SERVICE_TOKEN_FILE (service_token_file) is {self._token_file!r}: {why}")

    def _renew_token(self, refused: str) -> bool:
        """Read the token's file again, unless another request has; answer whether the token is another one now."""
        if self._token == refused:
            try:
                self._token = self._read_token() or refused
            except ConfigError:
                return False
        return self._token != refused


def _problem_in(reply: Reply) -> Problem | None:
    if not reply.headers.get("content-type", "").startswith(PROBLEM):
        return None
    try:
        return msgspec.json.decode(reply.body, type=Problem)
    except msgspec.MsgspecError:
        return None


def _retry_after_s(reply: Reply) -> float:
    text = reply.headers.get("retry-after", "")
    return min(float(text), LONGEST_PAUSE_S) if text.isascii() and text.isdigit() else 0.0
