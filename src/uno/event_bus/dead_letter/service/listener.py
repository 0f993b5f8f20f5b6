"""uvicorn's server on a socket of ours, in a task of ours: it leaves signals, logs and certificates to us."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, override

import anyio
import uvicorn
from starlette.types import ASGIApp

from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.service.connections import Connections
from uno.event_bus.dead_letter.service.protocol import Protocol
from uno.event_bus.dead_letter.service.settings import ServiceSettings

__all__ = ["Certificate", "Listener", "bind"]

logger = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75
"""How long a connection may be idle: longer than proxies keep theirs (nginx: 60 s), which would use a closed one."""

BACKLOG: Final = 1024
DATE_S: Final = 1.0
"""How old the time in a reply's ``Date`` may be."""

CANCELLED_S: Final = 1.0
"""How long requests may take to end that were cancelled at the end of the server's time."""

CERTIFICATE_LOOK_S: Final = 5.0


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises `ConfigError` with one line that names the address."""
    name = host.strip("[]")
    try:
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        both = name == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((name, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        is_of_system = bool(error.errno) and not isinstance(error, socket.gaierror)
        why = os.strerror(error.errno or 0) if is_of_system else error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL:
            why += "; Kubernetes sets DLQ_SERVICE_HOST beside a service called dlq, unless enableServiceLinks is false"
        raise ConfigError(f"the service cannot listen at {host}:{port} (DLQ_SERVICE_HOST, _PORT): {why}") from error


class Certificate:
    """The service's certificate: TLS 1.2 at least. Raises `ConfigError` for files that cannot be used."""

    def __init__(self, cert_file: str, key_file: str | None) -> None:
        self._files = cert_file, key_file
        self._seen = self._look()
        self.context = self._load(_new_context())

    async def watch(self) -> None:
        """Read the files anew when they change, until cancelled; what cannot be used changes nothing but the log."""
        while True:
            await anyio.sleep(CERTIFICATE_LOOK_S)
            seen = self._look()
            if seen == self._seen or not seen:
                continue
            self._seen = seen
            try:
                self._load(_new_context())  # first where it does no harm: one file of two may have changed
                self._load(self.context)
            except ConfigError as error:
                logger.error("the certificate stays as it was: %s", error)
            else:
                logger.info("certificate read from %s", self._files[0])

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        cert_file, key_file = self._files
        try:
            # An encrypted key would ask for its password on the terminal.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            what = (
                error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no certificate with its key"
            )
            files = " and ".join(repr(name) for name in self._files if name)
            raise ConfigError(f"{files} cannot be used for TLS: {what}") from error
        return context

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for name in self._files:
            if name is not None:
                try:
                    status = os.stat(name)
                except OSError:
                    return []
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class Listener(uvicorn.Server):
    """Serves an app on a socket until `stop` is called; then requests under way have `grace_s` seconds to end."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServiceSettings,
        listening: socket.socket,
        *,
        grace_s: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.live = Connections(settings.max_connections, settings.request_timeout, settings.max_body_bytes)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Protocol, of=self.live),  # type: ignore[arg-type]  # it is only called
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # Without it one client that leaves a reply open would keep the process for ever.
                timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type]  # it goes to asyncio.wait_for
            )
        )
        self.is_up = anyio.Event()
        """Set when connections are taken."""
        self._is_stopping = anyio.Event()
        self._listening, self._context = listening, context
        self._handshake_s = settings.request_timeout
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # we say ourselves that it starts and stops

    async def run_until_stopped(self) -> None:
        """Serve; at the end, and when cancelled, no connection is left."""
        try:
            await self.serve()
            if self.server_state.tasks:  # cancelled by now: their clients are told
                await asyncio.wait(self.server_state.tasks, timeout=CANCELLED_S)
        finally:
            for server in getattr(self, "servers", []):
                server.close()
            for connection in list(self.live.all):
                connection.abort()
            self._listening.close()

    def stop(self) -> None:
        """Take no more connections, answer what is under way, and end."""
        self.should_exit = True
        self._is_stopping.set()

    @override
    async def main_loop(self) -> None:
        # uvicorn's own wakes up ten times a second to look whether it is to stop.
        while not await self.on_tick(0):
            with anyio.move_on_after(DATE_S):
                await self._is_stopping.wait()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # signals are the process's

    @override
    async def startup(self, sockets: Any = None) -> None:
        # uvicorn's own passes no bound for the handshake: a client that stalls there would stay for a minute.
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._new_protocol,
            sock=self._listening,
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else self._handshake_s,
        )
        self.servers = [server]
        self.started = True
        self.is_up.set()

    def _new_protocol(self) -> asyncio.Protocol:
        kind: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
