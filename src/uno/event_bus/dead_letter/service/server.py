"""The process of the service: a queue, its routes behind the guard, and the socket. Nothing is kept here, so as many
processes as wanted serve one queue.
"""

from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service.access import Tokens
from uno.event_bus.dead_letter.service.guard import Guard
from uno.event_bus.dead_letter.service.listener import Certificate, Listener, bind
from uno.event_bus.dead_letter.service.settings import ServiceSettings, is_loopback

__all__ = ["Server"]


class Server:
    """Serves routes while the ``async with`` block runs; `url` is where.

    Args:
        app: The routes, `service.app.make_app`; a request reaches them only through the guard.
        settings: Where it listens, who may come in, and how much.
        grace_s: Seconds that requests under way have at the end. Replies that would go on for ever have to end by
            themselves: `make_app` has a `stop` for that, which is to be set before the block ends.

    Construction reads the tokens and the certificate, and takes the address. Raises `ConfigError` with one line for
    what is wrong with them.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, *, grace_s: float) -> None:
        self._settings = settings
        tokens = None if settings.tokens_file is None else Tokens(settings.tokens_file)
        self._certificate = None if settings.cert_file is None else Certificate(settings.cert_file, settings.key_file)
        self._socket = bind(settings.host, settings.port)
        self._address, self._port = self._socket.getsockname()[:2]
        if tokens is None and not is_loopback(self._address):
            self._socket.close()
            raise ConfigError(
                f"DLQ_SERVICE_HOST (host) is {settings.host!r}, which is {self._address}: others reach it, "
                "and there are no tokens: set DLQ_SERVICE_TOKENS_FILE"
            )
        self._listener = Listener(
            Guard(app, settings, tokens, address=self._address),
            settings,
            self._socket,
            grace_s=grace_s,
            context=None if self._certificate is None else self._certificate.context,
        )
        self._group: TaskGroup | None = None
        self._has_ended = anyio.Event()

    @property
    def url(self) -> str:
        """Where it is served, with the port that was found for 0."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"{'http' if self._certificate is None else 'https'}://{host}:{self._port}"

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        if self._certificate is not None:
            self._group.start_soon(self._certificate.watch)
        self._group.start_soon(self._serve)
        await self._listener.is_up.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None
        if error is None:
            self._listener.stop()
            await self._has_ended.wait()
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(kind, error, trace)

    async def _serve(self) -> None:
        try:
            await self._listener.run_until_stopped()
        finally:
            self._has_ended.set()
